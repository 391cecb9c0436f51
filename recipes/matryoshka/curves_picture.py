"""Progressive curves as an SVG: FVU, cosine and zero-shot accuracy over k and over prefixes."""

from collections.abc import Callable, Sequence
from math import log2
from typing import NamedTuple

from vision_sae.recipes.matryoshka.curves import Point

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 300, 210, 46, 34, 28
BLUE, ORANGE = "#2f6fd0", "#c2571a"
HALO = 'stroke="#fff" stroke-width="3" paint-order="stroke"'
BESIDE = f'<tspan fill="{ORANGE}">○ other SAEs, one for each sparsity</tspan>'
MEASURES: dict[str, Callable[[Point], float | None]] = {
    "FVU": lambda p: p.fvu,
    "cosine": lambda p: p.cosine,
    "zero-shot accuracy": lambda p: p.accuracy,
}
Line = list[tuple[float, float]]


class _Axis(NamedTuple):
    """What a measure is drawn over: the points of a curve, and those beside it."""

    name: str
    across: Callable[[Point], float]
    points: list[Point]
    beside: Sequence[Point] = ()

    def lines(self, of: Callable[[Point], float | None]) -> tuple[Line, Line]:
        """Without the points that have no such value."""
        curve, others = (
            [(self.across(p), value) for p in some if (value := of(p)) is not None]
            for some in (self.points, self.beside)
        )
        return sorted(curve), sorted(others)


def draw_curves(points: Sequence[Point], beside: Sequence[Point] = ()) -> str:
    """A panel per measure and axis (active latents, prefix); axes of counts are logarithmic.

    Other SAEs, which serve one sparsity each, are circles `beside` the curve over active latents.
    """
    axes = [
        _Axis(
            "active latents per row", lambda p: p.l0, [p for p in points if not p.prefix], beside
        ),
        _Axis("latents in the prefix", lambda p: p.prefix or 0, [p for p in points if p.prefix]),
    ]
    drawn = [(name, axis, *axis.lines(of)) for name, of in MEASURES.items() for axis in axes]
    panels = [_panel(name, axis.name, *lines) for name, axis, *lines in drawn if len(lines[0]) > 1]
    placed = [
        f'<g transform="translate({i % 2 * WIDTH} {i // 2 * HEIGHT})">{panel}</g>'
        for i, panel in enumerate(panels)
    ]
    size = f'width="{2 * WIDTH}" height="{max(1, -(-len(panels) // 2)) * HEIGHT}"'
    style = 'font-family="sans-serif" font-size="11" fill="#444"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>' + "".join(placed) + "</svg>\n"


def _panel(name: str, axis: str, line: Line, beside: Line) -> str:
    """One curve with its points and their values, and circles beside it."""
    at, offset = _scale([*line, *beside]), -8 if not beside else 18  # circles want the room
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
