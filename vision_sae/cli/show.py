"""What the commands share: progress bars, tables, and errors as one red line."""

import json
import math
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from vision_sae.errors import VisionSAEError

# progress and messages; paths and names hold what rich would take for markup or break into lines
console = Console(stderr=True, markup=False, emoji=False, highlight=False, soft_wrap=True)
results = Console(markup=False, emoji=False)


class Rate(ProgressColumn):
    """Units per second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        unit = task.fields.get("unit", "it")
        return Text(f"{speed:,.0f} {unit}/s" if speed else f"- {unit}/s", style="dim")


Advance = Callable[[int, str], None]


def _columns() -> tuple[ProgressColumn, ...]:
    done = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return (*done, Rate(), TimeRemainingColumn())


@contextmanager
def progress(title: str, total: int | None, unit: str, *, shown: bool = True) -> Iterator[Advance]:
    """A bar with rate and time left; call it with how many more units are done, and a note."""
    columns = (*_columns(), TextColumn("[dim]{task.fields[note]}"))
    with Progress(*columns, console=console, disable=not shown) as bar:
        task = bar.add_task(title, total=total, unit=unit, note="")

        def advance(n: int, note: str = "") -> None:
            bar.update(task, advance=n)
            if note:
                bar.update(task, note=note)

        yield advance


@contextmanager
def stages() -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each part of a work; call it with what, how many more are done, of how many."""
    tasks: dict[str, TaskID] = {}
    with Progress(*_columns(), console=console) as bar:

        def tell(what: str, more: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], advance=more)

        yield tell


def table(title: str, rows: Mapping[str, Any]) -> None:
    """Two columns: what, and how much."""
    results.print(f"\n{title}", style="bold", soft_wrap=True)  # a Table's own title would wrap
    grid = Table(show_header=False)
    for name, value in rows.items():
        grid.add_row(name, number(value))
    results.print(grid)


def tree(title: str, paths: Iterable[str], notes: Mapping[str, str]) -> None:
    """Dotted paths as a tree, each parent before its children, with what is known of some."""
    results.print(title, style="bold", soft_wrap=True)
    root = Tree("model")
    branches = {"": root}
    for path in paths:
        parent, _, name = path.rpartition(".")
        note = f"  {notes[path]}" if path in notes else ""
        branches[path] = branches.get(parent, root).add(f"{name}{note}")
    results.print(root, soft_wrap=True)


def grid(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A table with a head; numbers stand to the right."""
    results.print(f"\n{title}", style="bold", soft_wrap=True)
    listed = [list(row) for row in rows]
    found = Table()
    for i, name in enumerate(columns):
        numeric = any(isinstance(row[i], int | float) for row in listed)
        found.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in listed:
        found.add_row(*("" if value is None else number(value) for value in row))
    results.print(found)


def number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    counted = isinstance(value, int) and not isinstance(value, bool)
    return f"{value:,}" if counted else str(value)


def as_json(value: Any) -> None:
    """JSON has no NaN or infinity: they become null."""
    sys.stdout.write(json.dumps(_finite(value), indent=1, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def errors() -> Iterator[None]:
    """Our own errors become one line and exit code 1; Ctrl-C says that the work can be resumed."""
    usual = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    except VisionSAEError as error:
        console.print(Text(f"error: {error}", style="red"))
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        console.print("stopped; what is finished is kept, the same command goes on from there")
        raise typer.Exit(130) from None
    finally:
        signal.signal(signal.SIGTERM, usual)


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt
