"""The commands that draw and judge: sweep and evaluate, and the measure by which find tunes."""

import hashlib
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from vision_sae.cli import show
from vision_sae.errors import ConfigError, claim_folder
from vision_sae.model.adapter import load_adapter
from vision_sae.recipes.unlearn import methods
from vision_sae.recipes.unlearn.apply import removal_of
from vision_sae.recipes.unlearn.benchmark import measures
from vision_sae.recipes.unlearn.benchmark.draw import draw_asks, unit
from vision_sae.recipes.unlearn.benchmark.main import evaluate as run_benchmark
from vision_sae.recipes.unlearn.benchmark.tables import text as as_text
from vision_sae.recipes.unlearn.benchmark.tables import without_sheets
from vision_sae.recipes.unlearn.benchmark.world import emoji_world, few
from vision_sae.recipes.unlearn.cli import EMBEDDED
from vision_sae.recipes.unlearn.find import Choice, Evidence, observe, plan_for
from vision_sae.recipes.unlearn.inputs import advance_of, need_saes, saes_of, usual_for
from vision_sae.recipes.unlearn.plan import DESCRIPTION, TENSORS, Plan
from vision_sae.recipes.unlearn.removal import Method, Removal
from vision_sae.recipes.unlearn.sweep import in_window, where_removable
from vision_sae.recipes.unlearn.sweep import windows as parts_of
from vision_sae.recipes.unlearn.tune import tune
from vision_sae.sae import SAE


def tuned(
    concept: str,
    seen: Evidence,
    choice: Choice,
    grid: Mapping[str, Sequence[Any]],
    as_json: bool,
) -> Plan:
    """The best of a grid by the mean of UA, IRA and CRA on validation pictures."""
    world, points = emoji_world(), math.prod(map(len, grid.values()))
    world.check(concept)
    with show.progress("tune", points, "plans") as advance:

        def measure(plan: Plan) -> float:
            removal = removal_of(plan, seen.saes)
            return statistics.fmean(scores(world, removal, concept, 40).values())

        found = tune(
            seen, concept, grid, measure, base=choice,
            tell=lambda tried: advance(1, f"{tried.score:.3f}"),
        )  # fmt: skip
    rows = [(*tried.settings.values(), tried.score) for tried in found.tried]
    if not as_json:
        show.grid("tuned on validation pictures", (*grid, "mean of UA, IRA, CRA"), rows)
    return found.plan


def sweep(
    concept: str, out: Path, windows: int, pictures: int, overwrite: bool, as_json: bool
) -> Any:
    claim_folder(out, "index.html", overwrite=overwrite)
    world = emoji_world()
    world.check(concept)
    adapter, rows = load_adapter(EMBEDDED), methods.asked(2)
    saes, choice = saes_of(EMBEDDED, adapter, ()), usual_for(concept)
    parts = parts_of(windows)
    with show.progress("look", 2 * len(rows), "prompts") as advance:
        seen = observe(
            adapter, saes, rows, [concept], candidates=choice.detectors, tell=advance_of(advance)
        )
    # each site alone, as pairs are followed with the others' edits in place
    plans = {site: plan_for(_at(seen, site), concept, choice) for site in saes}
    with show.progress("sweep", len(saes) * len(parts), "places") as advance:
        table = where_removable(
            lambda site, window: in_window(plans[site], window),
            lambda plan: scores(world, removal_of(plan, saes), concept, pictures),
            list(saes), parts, tell=lambda site, window, found: advance(1, site),
        )  # fmt: skip
    page = table.write(out, f"Where {concept} can be removed")
    if as_json:
        show.as_json(table.rows())
    show.console.print(f"open {page.resolve()}")
    return table


def _at(seen: Evidence, site: str) -> Evidence:
    """The same evidence of one site."""
    return replace(seen, saes={site: seen.saes[site]}, statistics={site: seen.statistics[site]})


def scores(world: Any, removal: Removal, concept: str, pictures: int) -> dict[str, float]:
    """UA, IRA and CRA of a removal on a few validation pictures."""
    targets = few(world.targets(concept, "validation", 1), pictures)
    others = world.others([concept], "validation", pictures)
    with removal(world.pipe) as run:
        drawn = draw_asks(world, run, [*targets, *others])
    seen = measures.read(world.judge, unit(drawn))
    found = measures.outcome(concept, targets, seen[: len(targets)], others, seen[len(targets) :])
    return {name.upper(): found[name] for name in ("ua", "ira", "cra")}


class _Given(NamedTuple):
    """Plans that are there already, as a method."""

    plans: Sequence[Plan]
    saes: Mapping[str, SAE]
    name: str = "plan"

    def fit(self, pipe: Any, concepts: Sequence[str]) -> Removal:
        mine = [plan for plan in self.plans if plan.concept in concepts]
        return removal_of(mine, self.saes)


def _digest(plans: Sequence[Path]) -> str:
    """Of all that plans hold."""
    found = hashlib.sha256()
    for folder in plans:
        found.update((folder / DESCRIPTION).read_bytes() + (folder / TENSORS).read_bytes())
    return found.hexdigest()[:8]


def evaluate(
    out: Path,
    plans: Sequence[Path],
    concepts: Sequence[str],
    chosen: Sequence[str],
    quick: bool,
    as_json: bool,
) -> list[Any]:
    more: dict[str, Any] = {}
    if plans:
        loaded = [Plan.load(folder) for folder in plans]
        concepts = concepts or [plan.concept for plan in loaded]
        missing = set(concepts) - {plan.concept for plan in loaded}
        if missing:
            raise ConfigError(f"no plan is given for {', '.join(sorted(missing))}")
        saes = saes_of(EMBEDDED, None, ()) if need_saes(loaded) else {}
        name = f"plan {_digest(plans)}"  # another plan is another method: OUT may hold cells
        given: Method = _Given(loaded, saes, name)
        more, chosen = {name: lambda: given}, [*chosen, name]
    tell = show.console.print
    cells = run_benchmark(out, quick=quick, concepts=concepts, methods=chosen, more=more, tell=tell)
    if as_json:
        show.as_json(without_sheets(cells))
    else:
        show.results.print(as_text(cells), soft_wrap=True)
    show.console.print(f"open {(out / 'index.html').resolve()}")
    return cells
