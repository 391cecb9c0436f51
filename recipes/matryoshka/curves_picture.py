"""Progressive curves as an SVG: FVU, cosine and zero-shot accuracy over k and over prefixes."""

from collections.abc import Callable, Sequence
from math import log2

from vision_sae.recipes.matryoshka.curves import Point

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 300, 210, 46, 34, 28
MEASURES: dict[str, Callable[[Point], float | None]] = {
    "FVU": lambda p: p.fvu,
    "cosine": lambda p: p.cosine,
    "zero-shot accuracy": lambda p: p.accuracy,
}


def draw_curves(points: Sequence[Point]) -> str:
    """A panel per measure and axis (active latents, prefix); axes of counts are logarithmic."""
    whole = sorted((p for p in points if p.prefix is None), key=lambda p: p.l0)
    cut = sorted((p for p in points if p.prefix is not None), key=lambda p: p.prefix or 0)
    axes = {"active latents per row": [(p.l0, p) for p in whole],
            "latents in the prefix": [(float(p.prefix or 0), p) for p in cut]}  # fmt: skip
    panels = [
        _panel(name, axis, [(x, value) for x, p in line if (value := of(p)) is not None])
        for name, of in MEASURES.items()
        for axis, line in axes.items()
        if len(line) > 1 and of(line[0][1]) is not None
    ]
    columns = 2 if any(len(line) > 1 for line in axes.values()) else 1
    rows = -(-len(panels) // columns)
    placed = [
        f'<g transform="translate({i % columns * WIDTH} {i // columns * HEIGHT})">{panel}</g>'
        for i, panel in enumerate(panels)
    ]
    size = f'width="{columns * WIDTH}" height="{max(1, rows) * HEIGHT}"'
    style = 'font-family="sans-serif" font-size="11" fill="#444"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>' + "".join(placed) + "</svg>\n"


def _panel(name: str, axis: str, line: Sequence[tuple[float, float]]) -> str:
    """One curve with its points, their values written above them."""
    xs, ys = [log2(max(x, 1e-9)) for x, _ in line], [y for _, y in line]
    low, high = min(0.0, *ys), max(ys) or 1.0

    def at(x: float, y: float) -> tuple[float, float]:
        wide, tall = WIDTH - LEFT - 24, HEIGHT - BOTTOM - TOP - 14
        across = (x - min(xs)) / ((max(xs) - min(xs)) or 1)
        return LEFT + across * wide, HEIGHT - BOTTOM - (y - low) / ((high - low) or 1) * tall

    spots = [at(x, y) for x, y in zip(xs, ys, strict=True)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
    marks = "".join(
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="#2f6fd0"/>'
        f'<text x="{x:.1f}" y="{y - 7:.1f}" text-anchor="middle">{value:.3g}</text>'
        f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 14}" text-anchor="middle">{count:.4g}</text>'
        for (x, y), (count, value) in zip(spots, line, strict=True)
    )
    base = HEIGHT - BOTTOM
    return (
        f'<text x="{LEFT}" y="16" font-weight="bold" fill="#222">{name}</text>'
        f'<line x1="{LEFT}" x2="{WIDTH - 16}" y1="{base}" y2="{base}" stroke="#ccc"/>'
        f'<polyline points="{path}" fill="none" stroke="#2f6fd0" stroke-width="1.5"/>{marks}'
        f'<text x="{(LEFT + WIDTH) / 2:.0f}" y="{HEIGHT - 5}" text-anchor="middle">{axis}</text>'
    )
