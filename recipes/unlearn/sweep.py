"""Where a concept can be removed: a plan for each site and window of timesteps, measured."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vision_sae.errors import ConfigError, UnknownName
from vision_sae.files import write_bytes, write_json
from vision_sae.recipes.unlearn.plan import Plan
from vision_sae.report.html import render

Window = tuple[int, int]  # timesteps, both included
MakePlan = Callable[[str, Window], Plan]
Measure = Callable[[Plan], Mapping[str, float]]
LIGHT, DARK = (236, 240, 247), (23, 78, 166)  # of the least and of the greatest value
CELL, LABELS, HEAD = (84, 38), 250, 34  # pixels of a cell, of the sites' names, of the windows'


@dataclass(frozen=True)
class Table:
    """What was measured for each (site, window); all cells have the same measures."""

    sites: tuple[str, ...]
    windows: tuple[Window, ...]
    cells: Mapping[tuple[str, Window], Mapping[str, float]]

    @property
    def measures(self) -> tuple[str, ...]:
        return tuple(next(iter(self.cells.values())))

    def grid(self, measure: str) -> list[list[float]]:
        """One measure, sites by windows. Raises UnknownName."""
        if measure not in self.measures:
            raise UnknownName("measure", measure, self.measures)
        return [[self.cells[s, w][measure] for w in self.windows] for s in self.sites]

    def best(self, measure: str, *, least: bool = False) -> tuple[str, Window]:
        """Where a measure is greatest, or least; NaN is neither. Raises ConfigError for NaN only.

        Of equal ones the first.
        """
        self.grid(measure)
        known = [p for p, found in self.cells.items() if not math.isnan(found[measure])]
        if not known:
            raise ConfigError(f"{measure!r} is NaN everywhere, so no place is best")
        return (min if least else max)(known, key=lambda place: self.cells[place][measure])

    def rows(self) -> list[dict[str, Any]]:
        """One row per cell, as data."""
        return [
            {"site": site, "from": window[0], "to": window[1], **self.cells[site, window]}
            for site in self.sites
            for window in self.windows
        ]

    def markdown(self, measure: str) -> str:
        """One measure as a Markdown table."""
        head = ["site", *map(_named, self.windows)]
        lines = [head, ["---"] * len(head)]
        for site, values in zip(self.sites, self.grid(measure), strict=True):
            lines.append([site, *map(_shown, values)])
        return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"

    def write(self, out: Path | str, title: str = "Where a concept can be removed") -> Path:
        """A page of a heatmap per measure, and the numbers as .json beside it; gives its path.

        `out` is the .html file, or a folder for an index.html.
        """
        out = Path(out) if Path(out).suffix in (".html", ".htm") else Path(out) / "index.html"
        maps = [(measure, heatmap(self, measure)) for measure in self.measures]
        html = render(__package__, "sweep.html", title=title, maps=maps, table=self)
        out.parent.mkdir(parents=True, exist_ok=True)
        write_json(out.with_suffix(".json"), [_finite(row) for row in self.rows()])
        write_bytes(out, html.encode())
        return out


def where_removable(
    make_plan: MakePlan,
    measure: Measure,
    sites: Sequence[str],
    windows: Sequence[Window],
    *,
    tell: Callable[[str, Window, Mapping[str, float]], None] = lambda site, window, found: None,
) -> Table:
    """Make and measure a plan at each site within each window of timesteps.

    `measure` gives named numbers, such as {"UA": 0.9, "IRA": 0.95}, the same names each time.
    Raises ConfigError for no sites or windows, one that comes twice or ends before it begins, and
    for measures that differ.

        table = where_removable(
            lambda site, window: in_window(plans[site], window), measure,
            list(plans), windows(3),
        )
        table.write("where.html")
    """
    chosen = _checked(sites, windows)
    cells: dict[tuple[str, Window], Mapping[str, float]] = {}
    for site in chosen[0]:
        for window in chosen[1]:
            found = {n: float(v) for n, v in measure(make_plan(site, window)).items()}
            _check_names(found, cells, site, window)
            cells[site, window] = found
            tell(site, window, found)
    return Table(*chosen, cells)


def _checked(
    sites: Sequence[str], windows: Sequence[Window]
) -> tuple[tuple[str, ...], tuple[Window, ...]]:
    for what, given in (("site", sites), ("window", windows)):
        if not given or len(set(given)) < len(given):
            came = ", ".join(map(str, given)) or "none"
            raise ConfigError(f"name one or more {what}s, each once; got {came}")
    for low, high in windows:
        if low > high:
            raise ConfigError(f"a window is (from, to) in timesteps, from <= to; got {(low, high)}")
    return tuple(sites), tuple(windows)


def _check_names(
    found: Mapping[str, float], cells: Mapping[Any, Mapping[str, float]], site: str, window: Window
) -> None:
    before = next(iter(cells.values()), found)
    if not found or set(found) != set(before):
        raise ConfigError(
            f"measure gave {', '.join(found) or 'nothing'} at {site} in {_named(window)}; "
            f"it must give the same names each time ({', '.join(before) or 'at least one'})"
        )


def in_window(plan: Plan, window: Window) -> Plan:
    """The same plan, whose edits act at these timesteps only."""
    return replace(plan, edits=tuple(replace(edit, window=window) for edit in plan.edits))


def windows(count: int, last: int = 999, *, whole: bool = True) -> list[Window]:
    """`count` windows of equal length over timesteps 0 to `last`, first those of early sampling.

    With `whole` the window of all timesteps comes first. Raises ConfigError.
    """
    if not 1 <= count <= last + 1:
        raise ConfigError(f"count must be 1 to {last + 1}, the number of timesteps; got {count}")
    edges = [(last + 1) * i // count for i in range(count + 1)]
    parts = [(edges[i], edges[i + 1] - 1) for i in reversed(range(count))]
    return [(0, last), *parts] if whole and count > 1 else parts


# ---- the figure


def heatmap(table: Table, measure: str) -> str:
    """One measure as an inline SVG: sites down, windows across, each cell with its number."""
    grid = table.grid(measure)
    (wide, high), right = CELL, LABELS + CELL[0] * len(table.windows)
    found = [v for row in grid for v in row if math.isfinite(v)]
    low, top = (min(found), max(found)) if found else (0.0, 1.0)
    parts = [
        _text(LABELS + wide * (j + 0.5), HEAD - 12, _named(window), "muted")
        for j, window in enumerate(table.windows)
    ]
    for i, (site, row) in enumerate(zip(table.sites, grid, strict=True)):
        y = HEAD + high * i
        parts.append(_text(LABELS - 10, y + high / 2 + 4, _short(site), "", "end", site))
        for j, value in enumerate(row):
            share = (value - low) / (top - low or 1) if math.isfinite(value) else None
            told = f"{site}, timesteps {_named(table.windows[j])}: {measure} {_shown(value)}"
            parts.append(_cell(LABELS + wide * j, y, share, _shown(value), told))
    bottom = HEAD + high * len(grid)
    size = f'width="{right}" height="{bottom}" viewBox="0 0 {right} {bottom}"'
    return f'<svg {size} role="img" aria-label="{_escaped(measure)}">{"".join(parts)}</svg>'


def _cell(x: float, y: float, share: float | None, shown: str, told: str) -> str:
    wide, high = CELL
    if share is None:
        fill, ink = "none", "currentColor"
    else:
        mixed = [round(a + (b - a) * share) for a, b in zip(LIGHT, DARK, strict=True)]
        fill, ink = f"rgb({', '.join(map(str, mixed))})", "#fff" if share > 0.5 else "#1c1d1f"
    box = f'x="{x + 1}" y="{y + 1}" width="{wide - 2}" height="{high - 2}" rx="4"'
    middle = f'x="{x + wide / 2}" y="{y + high / 2 + 4}" text-anchor="middle"'
    return (
        f'<g><title>{_escaped(told)}</title><rect {box} fill="{fill}"/>'
        f'<text {middle} style="fill:{ink}">{shown}</text></g>'
    )


def _text(x: float, y: float, words: str, kind: str, anchor: str = "middle", told: str = "") -> str:
    hover = f"<title>{_escaped(told)}</title>" if told else ""
    place = f'x="{x}" y="{y}" class="{kind}" text-anchor="{anchor}"'
    return f"<text {place}>{hover}{_escaped(words)}</text>"


def _short(site: str, most: int = 34) -> str:
    return site if len(site) <= most else f"…{site[1 - most :]}"


def _named(window: Window) -> str:
    return f"{window[0]}–{window[1]}"


def _shown(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "–"


def _finite(row: Mapping[str, Any]) -> dict[str, Any]:
    """NaN and infinities are no JSON."""
    odd = {n for n, v in row.items() if isinstance(v, float) and not math.isfinite(v)}
    return {name: None if name in odd else value for name, value in row.items()}


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
