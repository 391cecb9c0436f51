"""Progressive curves as an SVG: FVU, cosine and zero-shot accuracy over k and over prefixes."""

from collections.abc import Callable, Sequence
from math import log2

from vision_sae.recipes.matryoshka.curves import Point

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 300, 210, 46, 34, 28
BLUE, ORANGE = "#2f6fd0", "#c2571a"
HALO = 'stroke="#fff" stroke-width="3" paint-order="stroke"'
BESIDE = f'<tspan fill="{ORANGE}">○ other SAEs, one for each sparsity</tspan>'
Line = list[tuple[float, float]]
Value = Callable[[Point], float | None]
MEASURES: dict[str, Value] = {
    "FVU": lambda p: p.fvu,
    "cosine": lambda p: p.cosine,
    "zero-shot accuracy": lambda p: p.accuracy,
}


def draw_curves(points: Sequence[Point], beside: Sequence[Point] = ()) -> str:
    """A panel per measure and axis (active latents, prefix); axes of counts are logarithmic.

    Other SAEs, which serve one sparsity each, are circles `beside` the curve over active latents.
    """
    whole, cut = [p for p in points if not p.prefix], [p for p in points if p.prefix]
    axes: list[tuple[str, Value, Sequence[Point], Sequence[Point]]] = [
        ("active latents per row", lambda p: p.l0, whole, beside),
        ("latents in the prefix", lambda p: p.prefix, cut, ()),
    ]
    drawn = [
        (name, axis, _line(curve, across, of), _line(others, across, of))
        for name, of in MEASURES.items()
        for axis, across, curve, others in axes
    ]
    panels = [_panel(*panel) for panel in drawn if len(panel[2]) > 1]
    placed = [
        f'<g transform="translate({i % 2 * WIDTH} {i // 2 * HEIGHT})">{panel}</g>'
        for i, panel in enumerate(panels)
    ]
    size = f'width="{2 * WIDTH}" height="{max(1, -(-len(panels) // 2)) * HEIGHT}"'
    style = 'font-family="sans-serif" font-size="11" fill="#444"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>' + "".join(placed) + "</svg>\n"


def _line(points: Sequence[Point], across: Value, up: Value) -> Line:
    """From left to right, without the points that have no such value."""
    spots = [(across(p), up(p)) for p in points]
    return sorted((x, y) for x, y in spots if x is not None and y is not None)


def _panel(name: str, axis: str, line: Line, beside: Line) -> str:
    """One curve with its points and their values, and circles beside it."""
    at = _scale([*line, *beside])
    offset = 18 if beside else -8  # values go below where circles want the room
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*spot) for spot in line))
    base = HEIGHT - BOTTOM
    return (
        f'<text x="{LEFT}" y="16" font-weight="bold" fill="#222">{name}</text>'
        f'<text x="{WIDTH - 16}" y="16" text-anchor="end">{BESIDE if beside else ""}</text>'
        f'<line x1="{LEFT}" x2="{WIDTH - 16}" y1="{base}" y2="{base}" stroke="#ccc"/>'
        f'<polyline points="{path}" fill="none" stroke="{BLUE}" stroke-width="1.5"/>'
        + "".join(_mark(*at(*spot), *spot, offset) for spot in line)
        + "".join(_circle(*at(*spot)) for spot in beside)
        + f'<text x="{(LEFT + WIDTH) / 2:.0f}" y="{HEIGHT - 5}" text-anchor="middle">{axis}</text>'
    )


def _scale(spots: Line) -> Callable[[float, float], tuple[float, float]]:
    """Where a value of a panel's points is drawn; counts are logarithmic."""
    xs, ys = [log2(max(x, 1e-9)) for x, _ in spots], [y for _, y in spots]
    low, high = min(0.0, *ys), max(ys) or 1.0
    wide, tall = WIDTH - LEFT - 24, HEIGHT - BOTTOM - TOP - 14

    def at(x: float, y: float) -> tuple[float, float]:
        across = (log2(max(x, 1e-9)) - min(xs)) / ((max(xs) - min(xs)) or 1)
        return LEFT + across * wide, HEIGHT - BOTTOM - (y - low) / ((high - low) or 1) * tall

    return at


def _circle(x: float, y: float) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="none" stroke="{ORANGE}"/>'


def _mark(x: float, y: float, count: float, value: float, offset: int) -> str:
    said = f"{count:.0f}" if count >= 10 else f"{count:.3g}"
    return (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{BLUE}"/>'
        f'<text x="{x:.1f}" y="{y + offset:.1f}" text-anchor="middle" {HALO}>{value:.3g}</text>'
        f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 14}" text-anchor="middle">{said}</text>'
    )
