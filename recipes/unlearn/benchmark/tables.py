"""Results in short: per method the mean over concepts, and the spread over its seeds."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from vision_sae.recipes.unlearn.benchmark.world import parse

Cell = Mapping[str, Any]


class Figure(NamedTuple):
    """Mean over seeds of the mean over concepts; the spread is the standard deviation over seeds
    (NaN for one).
    """

    mean: float
    spread: float
    cells: int

    def shown(self, percent: bool = True) -> str:
        if math.isnan(self.mean):
            return "-"
        factor, places = (100, 1) if percent else (1, 3)
        spread = "" if math.isnan(self.spread) else f" ± {self.spread * factor:.{places}f}"
        return f"{self.mean * factor:.{places}f}{spread}"


class Column(NamedTuple):
    """One column: what kind of cell it is from, its key, and whether it is a share."""

    title: str
    kind: str
    part: str
    key: str
    factor: str = ""
    percent: bool = True


def _scores(factor: str) -> list[Column]:
    keys = ("ua", "ira", "cra", "cra_saeuron", "cra_unlearncanvas")
    titles = ("UA", "IRA", "CRA", "CRA (SAeUron)", "CRA (UnlearnCanvas)")
    return [
        Column(f"{factor} {t}", "one", "scores", k, factor)
        for t, k in zip(titles, keys, strict=True)
    ]


TABLES: Mapping[str, Sequence[Column]] = {
    "Objects, in %": [*_scores("object"), Column("average", "one", "scores", "average", "object")],
    "Styles, in %": [*_scores("style"), Column("average", "one", "scores", "average", "style")],
    "What stays": [
        Column("Frechet", "one", "quality", "frechet", percent=False),
        Column("kernel", "one", "quality", "kernel", percent=False),
        Column("layer distance", "one", "quality", "layer_distance", percent=False),
        Column("unchanged pixels, %", "one", "quality", "unchanged"),
        Column("artefacts, %", "one", "quality", "artefacts"),
        *(
            Column(f"of {f}s' targets, %", "one", "quality", "artefacts_targets", f)
            for f in ("object", "style")
        ),
        Column("time per picture, ratio", "overhead", "scores", "ratio", percent=False),
    ],
    "Attacks: pictures read as the concept, in %": [
        Column("asked plainly", "attack", "scores", "before"),
        Column("synonyms", "attack", "scores", "synonyms"),
        Column("misspellings", "attack", "scores", "misspellings"),
        Column("learnt prefix", "attack", "scores", "prefix"),
        Column("prefix, nothing removed", "attack", "scores", "prefix_without"),
    ],
}


def figure(cells: Iterable[Cell], method: str, column: Column) -> Figure:
    """One method's figure in a column; NaN where there are no cells."""
    by_seed: dict[Any, list[float]] = {}
    for cell in cells:
        if cell["kind"] != column.kind or cell["method"] != method:
            continue
        if column.factor and parse(cell["concepts"][0])[0] != column.factor:
            continue
        value = cell[column.part].get(column.key)
        if value is not None and not math.isnan(value):
            by_seed.setdefault(cell["seed"], []).append(value)
    means = [statistics.fmean(values) for values in by_seed.values()]
    if not means:
        return Figure(math.nan, math.nan, 0)
    spread = statistics.stdev(means) if len(means) > 1 else math.nan
    return Figure(statistics.fmean(means), spread, sum(map(len, by_seed.values())))


class Table(NamedTuple):
    title: str
    head: list[str]
    rows: list[list[str]]

    def markdown(self) -> str:
        lines = [self.head, ["---"] * len(self.head), *self.rows]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    def text(self) -> str:
        """Columns in line."""
        wide = [max(map(len, column)) for column in zip(self.head, *self.rows, strict=True)]
        lines = [
            "  ".join(cell.ljust(w) for cell, w in zip(line, wide, strict=True)).rstrip()
            for line in (self.head, *self.rows)
        ]
        return "\n".join(lines)


def tables(cells: Sequence[Cell]) -> list[Table]:
    """All tables that have something in them."""
    methods = list(dict.fromkeys(cell["method"] for cell in cells))
    made = [_table(title, columns, cells, methods) for title, columns in TABLES.items()]
    together = [cell for cell in cells if cell["kind"] == "several"]
    return [table for table in [*made, *_together(together, methods)] if table.rows]


def _table(
    title: str, columns: Sequence[Column], cells: Sequence[Cell], methods: Sequence[str]
) -> Table:
    rows, counts = [], []
    for method in methods:
        found = [(figure(cells, method, column), column.percent) for column in columns]
        if any(f.cells for f, _ in found):
            rows.append([method, *(f.shown(percent) for f, percent in found)])
            counts.append(len(_concepts(cells, method, columns[0])))
    titles = [c.title.removeprefix(f"{c.factor} ") if c.factor else c.title for c in columns]
    if len(set(counts)) > 1:  # some methods are measured on fewer
        titles.append("concepts")
        rows = [[*row, f"{count}"] for row, count in zip(rows, counts, strict=True)]
    return Table(title, ["method", *titles], rows)


def _concepts(cells: Sequence[Cell], method: str, column: Column) -> set[str]:
    mine = [c for c in cells if c["kind"] == column.kind and c["method"] == method]
    named = {cell["concepts"][0] for cell in mine}
    return {name for name in named if not column.factor or parse(name)[0] == column.factor}


def _together(cells: Sequence[Cell], methods: Sequence[str]) -> list[Table]:
    """Several at once, and in a row: how the concept that was removed first holds."""
    sizes = sorted({len(cell["concepts"]) for cell in cells})
    rows, held = [], []
    for method in methods:
        own = [cell for cell in cells if cell["method"] == method]
        if not own:
            continue
        each = [[c for c in own if len(c["concepts"]) == size] for size in sizes]
        line = [f"{_mean(s, 'ua')} / {_mean(s, 'rest')}" for s in each]
        rows.append([method, *line])
        held.append([method, *(_first_held(s) for s in each)])
    head = ["method", *(f"{size}" for size in sizes)]
    return [
        Table("Several removed together: UA / accuracy of the rest, in %", head, rows),
        Table("UA of the first of them, in %", head, held),
    ]


def _mean(cells: Sequence[Cell], key: str) -> str:
    return f"{100 * statistics.fmean(c['scores'][key] for c in cells):.1f}" if cells else "-"


def _first_held(cells: Sequence[Cell]) -> str:
    values = [cell["each"][cell["concepts"][0]] for cell in cells]
    return f"{100 * statistics.fmean(values):.1f}" if values else "-"


def text(cells: Sequence[Cell]) -> str:
    return "\n\n".join(f"{table.title}\n{table.text()}" for table in tables(cells)) + "\n"


def markdown(cells: Sequence[Cell]) -> str:
    made = tables(cells)
    return "\n\n".join(f"### {table.title}\n\n{table.markdown()}" for table in made) + "\n"


def took(cells: Sequence[Cell]) -> str:
    """How long all cells took together, those of earlier runs too."""
    wall, cpu = (sum(c.get(key, 0.0) for c in cells) / 60 for key in ("seconds", "cpu_seconds"))
    return f"{len(cells)} cells took {wall:.1f} minutes, {cpu:.1f} of CPU"


def without_sheets(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """The numbers of all cells, without their pictures."""
    return [{name: value for name, value in cell.items() if name != "sheet"} for cell in cells]
