"""What the commands about many SAEs do: sweeps, suites, and the list of families."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from vision_sae import families as known
from vision_sae import parallel
from vision_sae.cli import show, steps
from vision_sae.errors import ConfigError
from vision_sae.files import size
from vision_sae.jobs.material import Material
from vision_sae.jobs.settings import EVERY, TRAINING, settings_of
from vision_sae.jobs.suite import (
    EXAMPLE,
    SuiteIndex,
    SuitePlan,
    extract_suite,
    open_sweeps,
    plan_suite,
    write_suite,
)
from vision_sae.jobs.sweep import Member, Sweep, members_of, train_sweeps
from vision_sae.store import Store

Together = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="At most so many members in memory at once. Default: all.",
        rich_help_panel="Machine",
    ),
]
NUMBERS = ["fvu", "cosine", "l0", "dead", "dense"]  # of the table at the end


class Reads(NamedTuple):
    """What a sweep reads: folders, or a running model in place of the first."""

    acts: Path | steps.Extraction
    targets: Path | None = None
    validation: Path | None = None
    validation_targets: Path | None = None

    def opened(self, device: str) -> Material:
        others = (self.targets, self.validation, self.validation_targets)
        stores = (Store(folder) if folder else None for folder in others)
        return Material(steps.opened(self.acts, device), *stores)


def sweep(
    read: Reads, out: Path, grid: dict[str, list[Any]], settings: dict[str, Any],
    together: int | None, device: str | None, overwrite: bool, as_json: bool,
    share: parallel.Kind | None = None,
) -> None:  # fmt: skip
    members = members_of(grid, settings)
    with parallel.join(share or "rows") as group:  # alone without torchrun
        material = read.opened(device or group.device)
        opened = Sweep(material, out, members, overwrite=overwrite, device=device, group=group)
        train([opened], together, shown=group.rank == 0)
        if group.rank:
            return
    if as_json:
        show.as_json(opened.index.model_dump())
    else:
        table(str(out), opened.index.members)


class Follower:
    """Moves one bar by the steps of all members, and shows the one that was last heard of."""

    def __init__(self, advance: show.Advance) -> None:
        self.advance = advance
        self.done: dict[str, int] = {}

    def follow(self, member: str, step: int, numbers: dict[str, float]) -> None:
        self.advance(step - self.done.get(member, 0), f"{member}  fvu {numbers['fvu']:.3g}")
        self.done[member] = step

    def finish(self, total: int) -> None:
        """The last steps of members, and those that stopped early, have no log."""
        self.advance(total - sum(self.done.values()), "")


def train(sweeps: Sequence[Sweep], together: int | None, shown: bool = True) -> None:
    total = sum(sweep.steps_left for sweep in sweeps)
    with show.progress("train", total, "steps", shown=shown) as advance:
        bar = Follower(advance)
        train_sweeps(sweeps, together=together, tell=bar.follow)
        bar.finish(total)


def table(title: str, members: Sequence[Member], prefix: str = "") -> None:
    """The members with their numbers."""
    rows = [
        [f"{prefix}{m.name}", *((m.metrics or {}).get(name) for name in NUMBERS)] for m in members
    ]
    show.grid(title, ["member", *NUMBERS], rows)


def suite(
    config: Path | None, example: bool, dry_run: bool, overwrite: bool, as_json: bool
) -> None:
    if example:
        print(json.dumps(EXAMPLE, indent=1))
        return
    if config is None:
        raise ConfigError("name a JSON file; `vision-sae suite --example` prints one")
    parallel.refuse("a suite", "extract, train and sweep can")
    plan = plan_suite(config)
    if dry_run:
        show_plan(plan, as_json)
        return
    index = run(plan, overwrite)
    if as_json:
        show.as_json(index.model_dump())
        return
    for site in index.sites:
        table(f"{plan.config.out}: {site.site}", site.members)


def run(plan: SuitePlan, overwrite: bool) -> SuiteIndex:
    images = plan.images if plan.config.stored else 0
    with show.progress("extract", images, "images", shown=plan.config.stored) as advance:
        extract_suite(plan, overwrite=overwrite, on_images=lambda n: advance(n, ""))
    sweeps = open_sweeps(plan, overwrite=overwrite)
    write_suite(plan)
    train(sweeps, plan.config.together)
    return write_suite(plan)


def show_plan(plan: SuitePlan, as_json: bool) -> None:
    rows = [
        {
            "site": site.site.name,
            "folder": str(site.folder),
            "rows": site.rows,
            "width": site.store.width,
            "acts_bytes": site.acts_bytes,
            "members": list(site.members),
            "sae_bytes": site.sae_bytes,
        }
        for site in plan.sites
    ]
    total = sum(site.acts_bytes + site.sae_bytes for site in plan.sites)
    if as_json:
        show.as_json({"sites": rows, "bytes": total})
        return
    listed = [[site.site.name, site.rows, site.store.width, size(site.acts_bytes),
               len(site.members), size(site.sae_bytes)] for site in plan.sites]  # fmt: skip
    columns = ["site", "rows", "width", "activations", "members", "SAEs"]
    show.grid(f"{plan.config.out}: {size(total)}, nothing is written yet", columns, listed)
    show.table("members of each site", {name: _words(s) for name, s in plan.members.items()})
    adam = 2 * sum(site.sae_bytes for site in plan.sites)  # two moments per weight
    show.console.print(f"while they train, states take about {size(adam)} more")


def _words(settings: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def families(name: str | None, as_json: bool) -> None:
    """One family, or every one and the settings that all have."""
    kinds = known.names() if name is None else [name]
    places = {kind: _about(known.family(kind)) for kind in kinds}
    if name is None:
        places |= {EVERY: "settings of any family", TRAINING: "settings of any training"}
    if as_json:
        show.as_json({place: _data(place, about) for place, about in places.items()})
        return
    for place, about in places.items():
        rows = [[s.name, _text(s.default), s.values, s.about] for s in settings_of(place)]
        show.grid(f"{place}: {about}", ["setting", "default", "values", ""], rows)


def _about(family: type[known.Family]) -> str:
    """The first sentence of its docstring."""
    first = (family.__doc__ or "").split("\n\n")[0]
    return " ".join(first.split())


def _data(place: str, about: str) -> dict[str, Any]:
    settings = {s.name: s._asdict() for s in settings_of(place)}
    for setting in settings.values():
        del setting["name"]
    return {"about": about, "settings": settings}


def _text(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    return str(value)
