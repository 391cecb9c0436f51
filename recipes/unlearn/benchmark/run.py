"""Run the benchmark: one JSON file per method and set of concepts, so that it goes on where it
stopped.

How many pictures a full run draws, on emoji-diffusion (28 concepts, 20 pictures a second):
    targets   9 pairs x 3 seeds for an object, 20 pairs x 2 seeds for a style: 27 to 40
    others    60, the same ones for all concepts
    one cell  92 pictures, 4.6 s; 28 concepts x 8 methods, 4 x 5, 2 x 1: 246 cells, 20 minutes
    attacks   4 concepts x 14 methods x (3 x 20 pictures, and 40 steps of learning): 9 minutes
    several   3 sets x 8 methods x (60 others, 8 pictures per concept): 7 minutes
    the rest  SAEs of two more seeds, plans (6 to 14 s for transport, for each of four methods),
              means, tuned attention: 50 minutes
"""

import json
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from vision_sae.errors import ConfigError, DataError
from vision_sae.files import write_json
from vision_sae.recipes.unlearn.benchmark import adversary, measures
from vision_sae.recipes.unlearn.benchmark.draw import Plain, draw_asks
from vision_sae.recipes.unlearn.benchmark.world import Ask, Split, World, parse
from vision_sae.recipes.unlearn.draw import draw, unit
from vision_sae.recipes.unlearn.judging import read
from vision_sae.recipes.unlearn.page import data_uri
from vision_sae.recipes.unlearn.prompts import few
from vision_sae.recipes.unlearn.removal import Method, Removal

Methods = Mapping[str, Callable[[], Method]]  # "name" or "name@seed" -> what makes it
Tell = Callable[[str], None]
Cell = dict[str, Any]


@dataclass(frozen=True)
class Counts:
    """How many pictures: see the arithmetic above."""

    seeds_of_object: int = 3  # for each of its pairs
    seeds_of_style: int = 2
    others: int = 60
    clean: int = 720  # unedited pictures, for artefacts and distances
    attacked: int = 20
    shown: int = 8
    rounds: int = 5  # of timing
    batch: int = 64

    def __post_init__(self) -> None:
        low = [name for name, value in asdict(self).items() if value < 1]
        if low or self.others < 2 or self.clean < 2:
            raise ConfigError(f"counts must be at least 1, others and clean at least 2; got {self}")

    def seeds(self, concept: str) -> int:
        return self.seeds_of_object if parse(concept)[0] == "object" else self.seeds_of_style


QUICK = Counts(seeds_of_object=2, seeds_of_style=1, others=40, clean=180, attacked=9, rounds=3)


@dataclass(frozen=True)
class Plans:
    """What a run measures beside the concepts one by one."""

    attacks: tuple[str, ...] = ()  # concepts that are attacked
    sizes: tuple[int, ...] = ()  # how many concepts are removed together
    overhead: bool = True
    attack: adversary.Attack = field(default_factory=adversary.Attack)


def run(
    world: World,
    methods: Methods,
    concepts: Sequence[str],
    split: Split,
    out: str | Path,
    *,
    counts: Counts = Counts(),
    plans: Plans = Plans(),
    limits: Mapping[str, Sequence[str]] = MappingProxyType({}),
    tell: Tell = lambda line: None,
) -> list[Cell]:
    """Measure every method on every concept; cells that are in `out` are read, not run again.

    Methods in `limits` are measured on those concepts alone, and never on several at once. Raises
    ConfigError for no methods or concepts, or where `out` holds cells of other settings;
    UnknownName for an unknown concept.
    """
    if not methods or not concepts:
        raise ConfigError("name at least one method and one concept to measure")
    for concept in (*concepts, *plans.attacks):
        world.check(concept)
    bench = Bench(world, Path(out), split, counts, tell)
    for name, make in methods.items():
        only = limits.get(name, concepts)
        attacks = tuple(concept for concept in plans.attacks if concept in only)
        mine = replace(plans, sizes=(), attacks=attacks) if name in limits else plans
        _run_method(bench, name, _Once(make), only, mine)
    return bench.cells


def _run_method(
    bench: "Bench", name: str, method: "_Once", concepts: Sequence[str], plans: Plans
) -> None:
    for concept in concepts:
        bench.cell("one", name, [concept], partial(bench.one, method, concept))
    for concept in plans.attacks:
        bench.cell("attack", name, [concept], partial(bench.attack, method, concept, plans.attack))
    for together in nested(concepts, plans.sizes):
        bench.cell("several", name, together, partial(bench.several, method, together))
    if plans.overhead and concepts:
        bench.cell("overhead", name, concepts[:1], partial(bench.overhead, method, concepts[0]))


def nested(concepts: Sequence[str], sizes: Sequence[int]) -> list[list[str]]:
    """For each size the first concepts of one seeded order, so that smaller sets are in larger.

    Raises ConfigError for a size that there is not.
    """
    order = list(concepts)
    random.Random(0).shuffle(order)
    wrong = [size for size in sizes if not 0 < size <= len(order)]
    if wrong:
        raise ConfigError(f"sets of {wrong} concepts asked for; there are 1 to {len(order)}")
    return [order[:size] for size in sorted(set(sizes))]


class _Once:
    """A method that is made when it is first needed, and fitted once to each set of concepts: cells
    that are done need neither."""

    def __init__(self, make: Callable[[], Method]) -> None:
        self.make = make
        self.made: Method | None = None
        self.fitted: dict[tuple[str, ...], Removal] = {}

    def fit(self, pipe: Any, concepts: Sequence[str]) -> Removal:
        if self.made is None:
            self.made = self.make()
        if tuple(concepts) not in self.fitted:
            self.fitted[tuple(concepts)] = self.made.fit(pipe, concepts)
        return self.fitted[tuple(concepts)]


@runtime_checkable
class Fits(Protocol):
    """What cells need of a method."""

    def fit(self, pipe: Any, concepts: Sequence[str]) -> Removal: ...


class Bench:
    """The cells of one folder."""

    def __init__(
        self, world: World, out: Path, split: Split, counts: Counts, tell: Tell = lambda line: None
    ) -> None:
        self.world, self.out, self.split, self.counts, self.tell = world, out, split, counts, tell
        self.settings = {
            "split": split, "counts": asdict(counts), "steps": world.steps,
            "guidance": world.guidance,
        }  # fmt: skip
        (out / "cells").mkdir(parents=True, exist_ok=True)
        self.plain = Plain(world, out / f"plain-{split}.safetensors", counts.batch)
        self.cells: list[Cell] = []
        self._clean: Tensor | None = None

    def cell(
        self, kind: str, name: str, concepts: Sequence[str], measure: Callable[[], Cell]
    ) -> Cell:
        """One file: read when it is there, else measured and written."""
        file = self.out / "cells" / f"{_safe('--'.join([kind, name, _set_name(concepts)]))}.json"
        if file.exists():
            found: Cell = json.loads(file.read_text())
            self._check(found, concepts, file)
        else:
            started, used = time.perf_counter(), time.process_time()
            method, _, seed = name.partition("@")
            found = {"kind": kind, "name": name, "method": method, "seed": seed or None}
            found |= {"concepts": list(concepts), "settings": self.settings} | measure()
            found["seconds"] = time.perf_counter() - started
            found["cpu_seconds"] = time.process_time() - used  # what a busy machine does not change
            write_json(file, found)
            self.tell(f"{kind} {name} {_set_name(concepts)}: {found['seconds']:.1f} s")
        self.cells.append(found)
        return found

    def _check(self, found: Cell, concepts: Sequence[str], file: Path) -> None:
        theirs = (found["settings"], found["concepts"])
        if theirs != (self.settings, list(concepts)):
            raise ConfigError(
                f"{file} was measured with {theirs}; this run has "
                f"{(self.settings, list(concepts))}: choose another folder, or delete that one"
            )

    @property
    def clean(self) -> Tensor:
        """Features of unedited pictures: every pair, as many seeds as it takes."""
        if self._clean is None:
            asks: list[Ask] = []
            while len(asks) < self.counts.clean:
                pairs = len(self.world.asks(self.split))
                asks += self.world.asks(self.split, len(asks) // pairs)
            self._clean = self.world.embed(unit(self.plain(asks[: self.counts.clean])))
        return self._clean

    def one(self, method: Fits, concept: str) -> Cell:
        """UA, IRA, CRA, quality and artefacts of one concept's removal."""
        targets = self.world.targets(concept, self.split, self.counts.seeds(concept))
        others = self.world.others([concept], self.split, self.counts.others)
        before, started = self.plain([*targets, *others]), time.perf_counter()
        removal = method.fit(self.world.pipe, [concept])
        fitted = time.perf_counter() - started
        after = self._drawn(removal, [*targets, *others])
        n = len(targets)
        pairs = self.world.asks(self.split)
        held = sum(ask.holds(concept) for ask in pairs)
        scores = {}
        for which, pictures in (("before", before), ("after", after)):
            seen = read(self.world.judge, unit(pictures))
            weights = (held, len(pairs) - held)
            scores[which] = measures.outcome(concept, targets, seen[:n], others, seen[n:], weights)
        quality = self.quality(before, after, n)
        sheet = self._sheet(before, after, n)
        return {
            "scores": scores["after"], "without": scores["before"], "quality": quality,
            "fit_seconds": fitted, "sheet": sheet,
        }  # fmt: skip

    def _drawn(self, removal: Removal, asks: Sequence[Ask]) -> Tensor:
        with removal(self.world.pipe) as run:
            return draw_asks(self.world, run, asks, self.counts.batch)

    def quality(self, before: Tensor, after: Tensor, n: int) -> dict[str, float]:
        """Of what must stay: all but the first n; artefacts of all, and of the first n."""
        features = self.world.embed(unit(after))
        own = self.world.embed(unit(before))
        odd = measures.strange(features, self.clean).float()
        found = {
            "frechet": measures.frechet(features[n:], own[n:]),
            "kernel": measures.kernel_distance(features[n:], own[n:], paired=True),
            "unchanged": float(measures.unchanged(before[n:], after[n:]).mean()),
            "artefacts": float(odd.mean()),
            "artefacts_targets": float(odd[:n].mean()) if n else float("nan"),
        }
        if self.world.layers is not None:
            a, b = self.world.layers(unit(before[n:])), self.world.layers(unit(after[n:]))
            found["layer_distance"] = float(measures.layer_distance(a, b).mean())
        return {name: value for name, value in found.items() if value == value}

    def _sheet(self, before: Tensor, after: Tensor, n: int) -> dict[str, Any]:
        """Pictures before (above) and after (below), those that ask for the concept first."""
        shown = self.counts.shown
        first = torch.linspace(0, n - 1, min(shown, n)).long().tolist()
        rest = torch.arange(n, len(before))[:shown].tolist()
        rows = [torch.cat(list(unit(p[first + rest])), 2) for p in (before, after)]
        return {"picture": data_uri(torch.cat(rows, 1)), "targets": len(first), "others": len(rest)}

    def several(self, method: Fits, concepts: Sequence[str]) -> Cell:
        """All of these concepts removed together: UA of each, and how the rest holds.

        In a nested row of sets, this is retention too: how the earlier ones hold.
        """
        others = self.world.others(concepts, self.split, self.counts.others)
        if not others:
            raise DataError(f"nothing is left when {len(concepts)} concepts are removed")
        removal = method.fit(self.world.pipe, concepts)
        sets = {c: few(self.world.targets(c, self.split, 1), 8) for c in concepts}
        asks = [ask for some in sets.values() for ask in some]
        after = self._drawn(removal, [*asks, *others])
        seen = read(self.world.judge, unit(after))
        each, start = {}, 0
        for concept, some in sets.items():
            mine = seen[start : start + len(some)]
            each[concept] = 1 - measures.accuracy(some, mine, parse(concept)[0])
            start += len(some)
        rest = {f: measures.accuracy(others, seen[start:], f) for f in ("object", "style")}
        scores = {"ua": statistics.fmean(each.values()), "rest": statistics.fmean(rest.values())}
        scores |= {f"rest_{factor}": value for factor, value in rest.items()}
        odd = measures.strange(self.world.embed(unit(after)), self.clean).float()
        return {"scores": scores, "each": each, "quality": {"artefacts": float(odd.mean())}}

    def attack(self, method: Fits, concept: str, attack: adversary.Attack) -> Cell:
        """Share of pictures read as the concept: asked plainly, in other words, with a prefix."""
        world, count = self.world, self.counts.attacked
        asks = few(world.targets(concept, self.split, self.counts.seeds(concept)), count)
        removal = method.fit(world.pipe, [concept])
        scores = {"before": self._success(concept, removal, asks)}
        for kind in ("synonyms", "misspellings"):
            worded = adversary.reworded(world, concept, asks, kind)
            if worded:
                scores[kind] = self._success(concept, removal, worded)
                scores[f"{kind}_without"] = self._read_as(concept, worded, self.plain(worded))
        fresh = world.targets(concept, "validation", 1)
        started = time.perf_counter()
        prefix = adversary.learn_prefix(world, concept, fresh, self.plain, removal, attack)
        learning = time.perf_counter() - started
        with removal(world.pipe) as run:
            attacked = adversary.Attacked(world.pipe, run, prefix)
            pictures = draw_asks(world, attacked, asks, self.counts.batch)
        scores["prefix"] = self._read_as(concept, asks, pictures)
        plainly = adversary.Attacked(world.pipe, world.pipe, prefix)
        pictures = draw_asks(world, plainly, asks, self.counts.batch)
        scores["prefix_without"] = self._read_as(concept, asks, pictures)
        return {"scores": scores, "attack": asdict(attack), "learning_seconds": learning}

    def _success(self, concept: str, removal: Removal, asks: Sequence[Ask]) -> float:
        return self._read_as(concept, asks, self._drawn(removal, asks))

    def _read_as(self, concept: str, asks: Sequence[Ask], pictures: Tensor) -> float:
        seen = read(self.world.judge, unit(pictures))
        return measures.accuracy(asks, seen, parse(concept)[0])

    def overhead(self, method: Fits, concept: str, images: int = 8) -> Cell:
        """Time per picture over the plain pipeline's, calls interleaved, medians."""
        asks = few(self.world.asks(self.split), images)
        removal = method.fit(self.world.pipe, [concept])
        plain, edited, rounds = [], [], self.counts.rounds
        for _ in range(rounds + 1):
            plain.append(self._timed(self.world.pipe, asks))
            with removal(self.world.pipe) as run:
                edited.append(self._timed(run, asks))
        a, b = statistics.median(plain[1:]), statistics.median(edited[1:])  # the first warms up
        return {"scores": {"ratio": b / a}, "plain_seconds": a / len(asks), "rounds": rounds}

    def _timed(self, run: Any, asks: Sequence[Ask]) -> float:
        started = time.perf_counter()
        draw(
            run, [ask.text for ask in asks], [ask.seed for ask in asks],
            steps=self.world.steps, guidance=self.world.guidance,
        )  # fmt: skip
        return time.perf_counter() - started


def _set_name(concepts: Sequence[str]) -> str:
    return concepts[0] if len(concepts) == 1 else f"{len(concepts)}-concepts"


def _safe(name: str) -> str:
    """A file's name: letters, digits and -@._ stay."""
    return "".join(c if c.isalnum() or c in "-@._" else "_" for c in name)
