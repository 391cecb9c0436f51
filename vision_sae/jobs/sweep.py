"""Many SAEs over one stream of activations: a grid of settings, one pass, one index.

DIR/index.json      the members with their settings, whether they are finished, and their numbers
DIR/topk-k8-seed0   a member, as `train_store` writes it
"""

import itertools
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from vision_sae import checkpoint
from vision_sae.config import Frozen, Versioned, read_settings
from vision_sae.errors import CheckpointError, ConfigError, OutputExists, claim_folder
from vision_sae.files import write_json
from vision_sae.jobs.material import Material
from vision_sae.jobs.settings import Recipe, Start, recipe, relevant
from vision_sae.jobs.training import claim_training, prepared
from vision_sae.measures.metrics import Metrics
from vision_sae.parallel import ALONE, Group
from vision_sae.sae import SAE, SAEConfig
from vision_sae.store import Store
from vision_sae.stream import Stream
from vision_sae.train import Run, train_all

INDEX = "index.json"
Settings = dict[str, Any]
Tell = Callable[[str, int, dict[str, float]], None]  # member, step, numbers


class Member(Frozen):
    """One SAE of a sweep."""

    name: str
    settings: Settings
    finished: bool = False
    metrics: dict[str, float | None] | None = None


class SweepIndex(Versioned):
    """What index.json holds."""

    acts: str | None = None
    stream: str | None = None
    targets: str | None = None
    validated_on: str | None = None
    validation_targets: str | None = None
    members: list[Member] = []


def train_sweep(
    store: Store | Stream,
    out: Path | str,
    grid: Mapping[str, Sequence[Any]],
    *,
    targets: Store | None = None,
    validation: Store | None = None,
    validation_targets: Store | None = None,
    together: int | None = None,
    device: str | None = None,
    overwrite: bool = False,
    tell: Tell = lambda member, step, numbers: None,
    group: Group = ALONE,
    **settings: Any,
) -> SweepIndex:
    """Train an SAE for each point of a grid, in one pass over the store; the same call resumes.

    `grid` and settings take the names that `train_store` takes. Members that differ in `seed`
    start from other weights and see the same rows in the same order, which is read once for all;
    `order` is the seed of that order. At most `together` members are in memory at once. `group`
    comes from `parallel.join()`, when torchrun has started several processes.
    """
    material = Material(store, targets, validation, validation_targets)
    members = members_of(grid, settings)
    sweep = Sweep(material, Path(out), members, device=device, overwrite=overwrite, group=group)
    train_sweeps([sweep], together=together, tell=tell)
    return sweep.index


def members_of(
    grid: Mapping[str, Sequence[Any]], settings: Mapping[str, Any]
) -> dict[str, Settings]:
    """The points of a grid by name, each with the other settings.

    A setting that only other families of the grid have is left out of a member, and members that
    become the same are one. Raises ConfigError.
    """
    _check_grid(grid, settings)
    kinds = {str(f) for f in grid.get("family", [settings.get("family", Start().family)])}
    order = settings.get("order", settings.get("seed", 0))
    members: dict[str, Settings] = {}
    for values in itertools.product(*grid.values()):
        point = dict(zip(grid, values, strict=True))
        whole = relevant({"order": order, **settings, **point}, kinds)
        name = _name({key: value for key, value in point.items() if key in whole})
        name = name or str(whole.get("family", Start().family))
        if members.setdefault(name, whole) != whole:
            raise ConfigError(f"two members of the grid would have the name {name}")
    return members


def _check_grid(grid: Mapping[str, Sequence[Any]], settings: Mapping[str, Any]) -> None:
    both = sorted(set(grid) & set(settings))
    if both:
        raise ConfigError(f"{', '.join(both)}: set once, and varied in the grid; choose one")
    for name, values in grid.items():
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise ConfigError(f"the grid's {name} must be a list of values; got {values!r}")


def _name(point: Settings) -> str:
    """What a member is called by what varies: topk-k8-seed0."""
    family = [point["family"]] if "family" in point else []
    rest = [_part(name, value) for name, value in point.items() if name != "family"]
    return "-".join([*family, *rest])


def _part(name: str, value: Any) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{name}{value!r}"
    text = value if isinstance(value, str) else json.dumps(value)
    return f"{name}_{re.sub(r'[^A-Za-z0-9.+]+', '_', text).strip('_')}"


class Sweep:
    """The members in a folder, of which some may be finished or under way.

    `label` comes before their names when progress is told; `beside` may be in the folder already.

    Raises ConfigError for settings that cannot be, before anything is written; OutputExists for a
    folder with something else in it; CheckpointError for one whose members have other settings.
    """

    def __init__(
        self,
        material: Material,
        folder: Path,
        members: Mapping[str, Settings],
        *,
        label: str = "",
        beside: str = INDEX,
        device: str | None = None,
        overwrite: bool = False,
        group: Group = ALONE,
    ) -> None:
        self.device, self.group = device, group
        self.material, self.folder, self.label = material, folder, label
        self.plans = {name: recipe(settings) for name, settings in members.items()}
        for plan in self.plans.values():
            self._config(plan)
        self.index = SweepIndex()
        if group.rank == 0:
            self.index = self._opened(members, beside, overwrite)
            for name in self.plans:
                if overwrite or not self._finished(name):
                    claim_training(folder / name, overwrite)
        self.update()

    def _config(self, plan: Recipe) -> SAEConfig:
        return plan.config(self.material.store.width, self.material.width_out)

    def _opened(self, members: Mapping[str, Settings], beside: str, overwrite: bool) -> SweepIndex:
        wanted = {name: Member(name=name, settings=_plain(s)) for name, s in members.items()}
        empty = SweepIndex(**self.material.record())
        found = read_index(self.folder) if (self.folder / INDEX).exists() else empty
        claim_folder(self.folder, INDEX, beside, overwrite=overwrite)
        if not overwrite:
            _check_same(self.folder, found, empty, wanted)
        kept = {member.name: member for member in found.members}
        merged = kept | wanted if overwrite else wanted | kept
        return empty.model_copy(update={"members": list(merged.values())})

    def _finished(self, name: str) -> bool:
        return (self.folder / name / checkpoint.CONFIG).exists()

    @property
    def unfinished(self) -> list[str]:
        return [name for name in self.plans if not self._finished(name)]

    @property
    def steps_left(self) -> int:
        """The steps of unfinished members, those they have done included."""
        return sum(self.plans[name].train.steps for name in self.unfinished)

    @contextmanager
    def run(self, name: str, tell: Tell) -> Iterator[Run]:
        """A member as a run."""
        plan = self.plans[name]
        sae = SAE(self._config(plan), seed=plan.start.seed)
        if self.group.size == 1:  # several processes place their parts themselves
            sae = sae.to(self.device or self.group.device)
        on_log, folder = partial(tell, self._called(name)), self.folder / name
        with prepared(self.material, sae, plan, folder, on_log, rank=self.group.rank) as run:
            yield run

    def _called(self, name: str) -> str:
        return f"{self.label}/{name}" if self.label else name

    def update(self) -> None:
        """Write the index, with the numbers of members that have finished: one process for all."""
        if self.group.rank == 0:
            members = [self._updated(member) for member in self.index.members]
            self.index = self.index.model_copy(update={"members": members})
            write_json(self.folder / INDEX, self.index.model_dump())
        self.group.total(0)  # the others wait
        if self.group.rank:
            self.index = read_index(self.folder)

    def _updated(self, member: Member) -> Member:
        finished = self._finished(member.name)
        numbers = member.metrics if finished else None
        if finished and numbers is None:
            sae = checkpoint.load(self.folder / member.name)
            numbers = _finite(self.material.measure(sae))
        return member.model_copy(update={"finished": finished, "metrics": numbers})


def train_sweeps(
    sweeps: Sequence[Sweep],
    *,
    together: int | None = None,
    tell: Tell = lambda member, step, numbers: None,
) -> None:
    """Train the unfinished members of several sweeps in one pass, each store read once for its own.

    At most `together` at a time, all by default; indexes are brought up to date.
    """
    if together is not None and together < 1:
        raise ConfigError(f"together must be at least 1; got {together}")
    todo = [(sweep, name) for sweep in sweeps for name in sweep.unfinished]
    size, group = together or max(1, len(todo)), sweeps[0].group if sweeps else ALONE
    for some in (todo[i : i + size] for i in range(0, len(todo), size)):
        with ExitStack() as stack:
            runs = [stack.enter_context(sweep.run(name, tell)) for sweep, name in some]
            train_all(runs, group=group)
        for sweep in sweeps:
            sweep.update()


def read_index(folder: Path) -> SweepIndex:
    """Of a sweep. Raises OutputExists when the folder's index is of something else."""
    try:
        return read_settings(SweepIndex, folder / INDEX, CheckpointError)
    except CheckpointError as error:
        raise OutputExists(f"{folder / INDEX} is not of a sweep; choose another folder") from error


def _check_same(
    folder: Path, found: SweepIndex, empty: SweepIndex, wanted: Mapping[str, Member]
) -> None:
    names = ("acts", "stream", "targets", "validated_on", "validation_targets")
    differ = [name for name in names if getattr(found, name) != getattr(empty, name)]
    for member in found.members:
        new = wanted.get(member.name, member).settings
        keys = sorted(set(new) | set(member.settings))
        differ += [k for k in keys if new.get(k) != member.settings.get(k) and k not in differ]
    if differ:
        raise CheckpointError(
            f"{folder} holds a sweep with other settings ({', '.join(differ)}); finish it with the "
            "same command, choose another folder, or pass --overwrite"
        )


def _plain(settings: Settings) -> Settings:
    """As they come back from JSON."""
    plain: Settings = json.loads(json.dumps(settings))
    return plain


def _finite(metrics: Metrics) -> dict[str, float | None]:
    """JSON has no NaN."""
    return {name: v if math.isfinite(v) else None for name, v in metrics.as_dict().items()}
