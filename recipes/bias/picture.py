"""Bias as an SVG: the change of each class beside random latents, and the way there."""

from collections.abc import Sequence
from html import escape

from vision_sae.recipes.bias.analysis import Bias, Effect

ROW, LEFT, WIDE, TOP = 20, 190, 360, 46
CURVE_LEFT, CURVE_WIDE, CURVE_TALL = 70, 250, 240
SHOWN = 24  # classes, those that move most
UP, DOWN, STILL = "#2f6fd0", "#c8553d", "#8a8c92"


def draw_bias(found: Bias) -> str:
    """A panel of changes with the random latents' range in grey, and one of curves.

    Filled dots are moved by both tests; hollow ones are not.
    """
    shown = strongest(found.effects, SHOWN)
    tall = max(TOP + ROW * len(shown) + 40, TOP + CURVE_TALL + 60)
    width = LEFT + WIDE + CURVE_LEFT + CURVE_WIDE + 150
    style = 'font-family="system-ui, sans-serif" font-size="12" fill="currentColor"'
    right = f'<g transform="translate({LEFT + WIDE + CURVE_LEFT} {TOP})">{_curves(found)}</g>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {tall}" width="{width}" '
        f'height="{tall}" {style}>{_changes(shown)}{right}</svg>\n'
    )


def strongest(effects: Sequence[Effect], count: int) -> list[Effect]:
    """Those that change most, from the largest rise to the largest fall."""
    kept = sorted(effects, key=lambda e: -abs(e.change))[:count]
    return sorted(kept, key=lambda e: -e.change)


def _colour(effect: Effect) -> str:
    if not effect.moved:
        return STILL
    return UP if effect.change > 0 else DOWN


def _changes(shown: Sequence[Effect]) -> str:
    most = max(abs(v) for e in shown for v in (e.change, e.control_low, e.control_high)) or 1.0
    base = TOP + ROW * len(shown)

    def at(change: float) -> float:
        return LEFT + WIDE / 2 + change / most * (WIDE / 2 - 14)

    lines = [
        '<text x="0" y="16" font-weight="600">Change of the mean probability, up minus down</text>',
        f'<line x1="{at(0)}" x2="{at(0)}" y1="{TOP - 8}" y2="{base}" stroke="#9998"/>',
    ]
    for number, effect in enumerate(shown):
        y, colour = TOP + ROW * number + 6, _colour(effect)
        low, high = at(effect.control_low), at(effect.control_high)
        fill = colour if effect.moved else "none"
        lines.append(
            f'<text x="{LEFT - 8}" y="{y + 4}" text-anchor="end">{escape(effect.name[:28])}</text>'
            f'<rect x="{low:.1f}" y="{y - 5}" width="{max(1, high - low):.1f}" height="10" rx="3" '
            f'fill="#8885"/><line x1="{at(0)}" x2="{at(effect.change):.1f}" y1="{y}" y2="{y}" '
            f'stroke="{colour}" stroke-width="1.5"/><circle cx="{at(effect.change):.1f}" cy="{y}" '
            f'r="4" fill="{fill}" stroke="{colour}" stroke-width="1.5">'
            f"<title>{effect.change:+.3f}, Holm p {effect.p_holm:.2g}</title></circle>"
        )
    for value in (-most, 0, most):
        lines.append(
            f'<text x="{at(value)}" y="{base + 18}" text-anchor="middle">{value:+.2g}</text>'
        )
    return "".join(lines)


def _curves(found: Bias) -> str:
    """Mean probability over levels, of the six classes that move most."""
    shown = strongest(found.effects, 6)
    high, last = max(p for e in shown for p in e.curve) or 1.0, max(found.levels)
    lines = [
        '<text x="0" y="-30" font-weight="600">Mean probability</text>',
        f'<line x1="0" x2="{CURVE_WIDE}" y1="{CURVE_TALL}" y2="{CURVE_TALL}" stroke="#9998"/>',
        f'<text x="{CURVE_WIDE / 2}" y="{CURVE_TALL + 36}" text-anchor="middle">'
        "times the typical value</text>",
    ]
    for level in found.levels:
        x = level / last * CURVE_WIDE
        lines.append(f'<text x="{x}" y="{CURVE_TALL + 16}" text-anchor="middle">{level:g}</text>')
    ends = _apart([CURVE_TALL * (1 - e.curve[-1] / high) for e in shown])
    for effect, end in zip(shown, ends, strict=True):
        spots = [
            (level / last * CURVE_WIDE, CURVE_TALL * (1 - p / high))
            for level, p in zip(found.levels, effect.curve, strict=True)
        ]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
        lines.append(
            f'<polyline points="{path}" fill="none" stroke="{_colour(effect)}" stroke-width="2"/>'
            f'<text x="{CURVE_WIDE + 8}" y="{end + 4:.1f}">{escape(effect.name[:20])}</text>'
        )
    lines += [
        f'<text x="-8" y="{CURVE_TALL * (1 - part) + 4}" text-anchor="end">{high * part:.2g}</text>'
        for part in (0, 0.5, 1)
    ]
    return "".join(lines)


def _apart(heights: Sequence[float], least: float = 14) -> list[float]:
    """Heights of labels, pushed up so that none covers another."""
    placed, ceiling = list(heights), float("inf")
    for i in sorted(range(len(placed)), key=lambda i: -placed[i]):
        placed[i] = ceiling = min(placed[i], ceiling - least)
    return placed
