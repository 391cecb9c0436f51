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
from vision_sae.recipes.unlearn.apply import removal_of
from vision_sae.recipes.unlearn.benchmark.main import evaluate as run_benchmark
from vision_sae.recipes.unlearn.benchmark.tables import text as as_text
from vision_sae.recipes.unlearn.benchmark.tables import without_sheets
from vision_sae.recipes.unlearn.choice import Choice
from vision_sae.recipes.unlearn.cli import EMBEDDED
from vision_sae.recipes.unlearn.evidence import Evidence, observe
from vision_sae.recipes.unlearn.find import plan_for
from vision_sae.recipes.unlearn.inputs import (
    Asked,
    advance_of,
    batch_of,
    need_judge,
    need_saes,
    prompts_of,
    saes_of,
    usual_for,
)
from vision_sae.recipes.unlearn.judging import Trial
from vision_sae.recipes.unlearn.plan import DESCRIPTION, TENSORS, Plan
from vision_sae.recipes.unlearn.prompts import check
from vision_sae.recipes.unlearn.removal import Method, Removal
from vision_sae.recipes.unlearn.statistics import times_sampled
from vision_sae.recipes.unlearn.sweep import Table, Window, in_window, where_removable
from vision_sae.recipes.unlearn.sweep import windows as parts_of
from vision_sae.recipes.unlearn.tune import tune
from vision_sae.sae import SAE


def tuned(
    concept: str,
    seen: Evidence,
    choice: Choice,
    grid: Mapping[str, Sequence[Any]],
    judge: Any,
    as_json: bool,
) -> Plan:
    """The best of a grid by the mean of UA, IRA and CRA on validation pictures."""
    trial = Trial.of(seen.adapter, judge, seen.prompts, concept, 40, seen.batch_size)
    with show.progress("tune", math.prod(map(len, grid.values())), "plans") as advance:
        found = tune(
            seen, concept, grid,
            lambda plan: statistics.fmean(trial(removal_of(plan, seen.saes)).values()),
            base=choice, tell=lambda tried: advance(1, f"{tried.score:.3f}"),
        )  # fmt: skip
    rows = [(*tried.settings.values(), tried.score) for tried in found.tried]
    if not as_json:
        show.grid("tuned on validation pictures", (*grid, "mean of UA, IRA, CRA"), rows)
        _tell_judge(trial)
    return found.plan


def _tell_judge(trial: Trial) -> None:
    """How far the judge is to be trusted: what it reads where nothing is removed."""
    told = ", ".join(f"{name} {value:.0%}" for name, value in trial.scores(trial.pipe).items())
    show.console.print(f"the judge on the same pictures, nothing removed: {told}")


def sweep(
    asked: Asked, out: Path, windows: int, pictures: int, overwrite: bool, as_json: bool
) -> Table:
    claim_folder(out, "index.html", overwrite=overwrite)
    rows, batch = prompts_of(asked, 2), batch_of(asked.model, asked.batch)
    check(rows, asked.concept)
    judge = need_judge(asked.model, asked.judge, rows)
    adapter: Any = load_adapter(asked.model)
    adapter.pipe.set_progress_bar_config(disable=True)
    saes, choice = saes_of(asked.model, adapter, asked.saes), usual_for(asked.concept)
    trial = Trial.of(adapter, judge, rows, asked.concept, pictures, batch)
    looks = times_sampled(adapter, saes, rows) * len(rows)
    with show.progress("look", looks, "prompts") as advance:
        seen = observe(
            adapter, saes, rows, [asked.concept],
            candidates=choice.detectors, batch_size=batch, tell=advance_of(advance),
        )  # fmt: skip
    table = _swept(seen, asked.concept, choice, parts_of(windows), trial)
    page = table.write(out, f"Where {asked.concept} can be removed")
    if as_json:
        show.as_json(table.rows())
    else:
        _tell_judge(trial)
    show.console.print(f"open {page.resolve()}")
    return table


def _swept(
    seen: Evidence, concept: str, choice: Choice, parts: Sequence[Window], trial: Trial
) -> Table:
    """Each site alone, as pairs are followed with the others' edits in place."""
    plans = {site: plan_for(_at(seen, site), concept, choice) for site in seen.saes}
    with show.progress("sweep", len(plans) * len(parts), "places") as advance:
        return where_removable(
            lambda site, window: in_window(plans[site], window),
            lambda plan: trial(removal_of(plan, seen.saes)),
            list(plans), parts, tell=lambda site, window, found: advance(1, site),
        )  # fmt: skip


def _at(seen: Evidence, site: str) -> Evidence:
    """The same evidence of one site."""
    return replace(seen, saes={site: seen.saes[site]}, statistics={site: seen.statistics[site]})


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
