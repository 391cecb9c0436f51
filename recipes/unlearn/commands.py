"""What each `vision-sae unlearn` command does, between its options and its output."""

import hashlib
import json
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch

from vision_sae.adapter import fingerprint, load_adapter
from vision_sae.cli import show
from vision_sae.data.prompts import Prompt
from vision_sae.errors import ConfigError, MismatchError, OutputExists, claim_folder, require
from vision_sae.files import write_json
from vision_sae.jobs.loading import load_sae
from vision_sae.recipes.unlearn import methods
from vision_sae.recipes.unlearn.apply import removal_of, unlearn
from vision_sae.recipes.unlearn.benchmark import measures
from vision_sae.recipes.unlearn.benchmark.draw import draw, draw_asks, unit
from vision_sae.recipes.unlearn.benchmark.main import evaluate as run_benchmark
from vision_sae.recipes.unlearn.benchmark.tables import text as as_text
from vision_sae.recipes.unlearn.benchmark.world import emoji_world
from vision_sae.recipes.unlearn.find import BEST, Choice, Evidence, choice_of, observe, plan_for
from vision_sae.recipes.unlearn.plan import DESCRIPTION, TENSORS, Plan
from vision_sae.recipes.unlearn.prompts import Labelled, check, holds, parse, read
from vision_sae.recipes.unlearn.removal import Method, Removal
from vision_sae.recipes.unlearn.show import show as write_show
from vision_sae.recipes.unlearn.sweep import in_window, where_removable
from vision_sae.recipes.unlearn.sweep import windows as parts_of
from vision_sae.recipes.unlearn.tune import check_grid, tune
from vision_sae.sae import SAE

EMBEDDED = "emoji-diffusion"


class Asked(NamedTuple):
    """What to look for, and where."""

    model: str
    concept: str
    saes: Sequence[str]
    prompts: Path | None


class Drawing(NamedTuple):
    """With what pictures are drawn; None: the adapter's own."""

    model: str
    saes: Sequence[str]
    steps: int | None
    guidance: float | None


# ---- find


def find(
    asked: Asked,
    out: Path,
    settings: Mapping[str, Any],
    compat: str | None,
    overwrite: bool,
    as_json: bool,
    grid: Mapping[str, Sequence[Any]] = MappingProxyType({}),
) -> Plan:
    claim_folder(out, DESCRIPTION, overwrite=overwrite)
    if (out / DESCRIPTION).exists() and not overwrite:
        raise OutputExists(f"{out} holds a plan; choose another folder or pass --overwrite")
    choice = choice_of(settings, compat, usual_for(asked.concept))
    if grid and not is_embedded(asked.model):
        raise ConfigError(
            f"--tune measures with the judge of emoji-diffusion, and {asked.model} has none; use "
            "vision_sae.recipes.unlearn.tune with a measure of your own"
        )
    check_grid(grid)
    rows = prompts_of(asked)
    check(rows, asked.concept)
    adapter = load_adapter(asked.model)
    saes = saes_of(asked.model, adapter, asked.saes)
    own = sum(holds(row, asked.concept) for row in rows) if choice.mode == "transport" else 0
    with show.progress("find", 2 * len(rows) + own * (not grid), "prompts") as advance:
        tell, concepts = advance_of(advance), [asked.concept]
        seen = observe(adapter, saes, rows, concepts, candidates=choice.detectors, tell=tell)
        plan = None if grid else plan_for(seen, asked.concept, choice, tell=tell)
    plan = plan or _tuned(asked, seen, choice, grid, as_json)
    plan.save(out)
    _tell_plan(plan, seen, out, as_json)
    return plan


def _tuned(
    asked: Asked,
    seen: Evidence,
    choice: Choice,
    grid: Mapping[str, Sequence[Any]],
    as_json: bool,
) -> Plan:
    """The best of a grid by the mean of UA, IRA and CRA on validation pictures."""
    world, points = emoji_world(), math.prod(map(len, grid.values()))
    world.check(asked.concept)
    with show.progress("tune", points, "plans") as advance:

        def measure(plan: Plan) -> float:
            removal = removal_of(plan, seen.saes)
            return statistics.fmean(scores(world, removal, asked.concept, 40).values())

        found = tune(
            seen, asked.concept, grid, measure, base=choice,
            tell=lambda tried: advance(1, f"{tried.score:.3f}"),
        )  # fmt: skip
    rows = [(*tried.settings.values(), tried.score) for tried in found.tried]
    if not as_json:
        show.grid("tuned on validation pictures", (*grid, "mean of UA, IRA, CRA"), rows)
    return found.plan


def advance_of(advance: show.Advance) -> Any:
    return lambda n: advance(n, "")


def usual_for(concept: str) -> Choice:
    """The settings that the benchmark uses for the concept's factor."""
    return methods.USUAL.get(parse(concept)[0], BEST)


def window_of(text: str) -> tuple[int, int]:
    """ "200:800". Raises ConfigError."""
    found = re.fullmatch(r"(\d+):(\d+)", text)
    if not found:
        raise ConfigError(f"--window takes FROM:TO in timesteps, as 200:800; got {text!r}")
    return int(found[1]), int(found[2])


def prompts_of(asked: Asked) -> list[Labelled]:
    if asked.prompts is not None:
        return read(str(asked.prompts))
    if not is_embedded(asked.model):
        raise ConfigError(
            f"which prompts of {asked.model} ask for {asked.concept}? pass --prompts TABLE, with "
            "the columns prompt, seed and one per factor"
        )
    return methods.asked(4)


def is_embedded(model: str) -> bool:
    return re.split("[:?]", model)[0] == EMBEDDED


def saes_of(model: str, adapter: Any, given: Sequence[str]) -> dict[str, SAE]:
    """By site. Raises ConfigError where none are known, MismatchError for one of another model."""
    if not given and is_embedded(model):
        from vision_sae.assets.models import emoji_diffusion_saes

        return emoji_diffusion_saes()
    if not given:
        raise ConfigError(f"no SAE of {model} is known: pass --sae FOLDER, as trained at its sites")
    return dict(_sae_of(text, adapter) for text in given)


def _sae_of(text: str, adapter: Any) -> tuple[str, SAE]:
    site, equals, folder = text.partition("=")
    sae = load_sae(folder if equals else text)
    known = sae.provenance
    if known is not None and known.fingerprint != fingerprint(adapter.model):
        raise MismatchError(
            f"the SAE in {folder or text} was trained on {known.model}, whose weights differ from "
            f"those of {adapter.name}"
        )
    if not equals and known is None:
        raise ConfigError(f"{text} does not say at which site it was trained: pass SITE={text}")
    if equals and known is not None and known.site != site:
        raise MismatchError(f"the SAE in {folder} was trained at {known.site}, not at {site}")
    return (site if equals else known.site), sae  # type: ignore[union-attr]


def _tell_plan(plan: Plan, seen: Evidence, out: Path, as_json: bool) -> None:
    if as_json:
        show.as_json(plan.describe())
        return
    rows = []
    for edit in plan.edits:
        edited = (edit.strengths != 0).any(0)
        apart = (edit.mean - edit.other).abs().mean(0) * edited
        best = apart.topk(min(5, len(apart))).indices
        named = ", ".join(str(int(edit.latents[i])) for i in best)
        rows.append((edit.site, int(edited.sum()), edit.mode, edit.where, named))
    show.grid(f"plan for {plan.concept}", ("site", "latents", "mode", "where", "first"), rows)
    show.table("made from", {k: v for k, v in plan.about.items() if k != "score"})
    show.console.print(f"{out}: draw with `vision-sae unlearn apply {out} --prompt ... --out ...`")


# ---- apply and show


def apply(
    plans: Sequence[Path],
    drawing: Drawing,
    prompts: Sequence[str],
    seed: int,
    out: Path,
    plain: bool,
    overwrite: bool,
    as_json: bool,
) -> list[dict[str, Any]]:
    claim_folder(out, "index.json", overwrite=overwrite)
    chosen = [Plan.load(folder) for folder in plans]
    adapter, saes = _opened(drawing, chosen)
    seeds = [seed + i for i in range(len(prompts))]
    settings = _settings(adapter, drawing)
    with show.progress("draw", len(prompts) * (1 + plain), "pictures") as advance:
        settings |= {"batch": 8, "tell": advance_of(advance)}
        with unlearn(adapter.pipe, chosen, saes=saes) as pipe:
            edited = draw(pipe, prompts, seeds, **settings)
        before = draw(adapter.pipe, prompts, seeds, **settings) if plain else None
    index = []
    for i, (text, one) in enumerate(zip(prompts, seeds, strict=True)):
        row: dict[str, Any] = {"prompt": text, "seed": one, "removed": [p.concept for p in chosen]}
        row["file"] = _write_picture(out, f"{_slug(text)}-{one}", edited[i])
        if before is not None:
            row["plain"] = _write_picture(out, f"{_slug(text)}-{one}-plain", before[i])
        index.append(row)
    write_json(out / "index.json", {"pictures": index})
    if as_json:
        show.as_json(index)
    show.console.print(f"{len(prompts)} pictures without {_names(chosen)} in {out}")
    return index


def _opened(drawing: Drawing, plans: Sequence[Plan]) -> tuple[Any, dict[str, SAE]]:
    """The adapter, and SAEs where a plan cannot do without."""
    adapter: Any = load_adapter(drawing.model)
    adapter.pipe.set_progress_bar_config(disable=True)
    wanted = bool(drawing.saes) or (_need_saes(plans) and is_embedded(drawing.model))
    return adapter, saes_of(drawing.model, adapter, drawing.saes) if wanted else {}


def _need_saes(plans: Sequence[Plan]) -> bool:
    edits = [edit for plan in plans for edit in plan.edits]
    return any(edit.readout is None or edit.saeuron_sign for edit in edits)


def _settings(adapter: Any, drawing: Drawing) -> dict[str, Any]:
    guidance = adapter.guidance if drawing.guidance is None else drawing.guidance
    return {"steps": drawing.steps or adapter.steps, "guidance": guidance}


def _names(plans: Sequence[Plan]) -> str:
    return ", ".join(plan.concept for plan in plans)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60] or "empty"


def _write_picture(out: Path, name: str, picture: torch.Tensor) -> str:
    image = require("PIL.Image", "data").fromarray(picture.permute(1, 2, 0).numpy())
    image.save(out / f"{name}.png")
    return f"{name}.png"


def show_plans(
    plans: Sequence[Path], drawing: Drawing, prompts: Path | None, out: Path, overwrite: bool
) -> Path:
    claim_folder(out, "index.html", overwrite=overwrite)
    chosen = [Plan.load(folder) for folder in plans]
    rows = _shown(drawing.model, prompts, [plan.concept for plan in chosen])
    adapter, saes = _opened(drawing, chosen)
    settings = _settings(adapter, drawing)
    with show.progress("draw", len(rows), "pairs") as advance:
        page = write_show(
            adapter.pipe, chosen, [row.prompt for row in rows], out, saes=saes,
            labels=[row.labels for row in rows], judge=_judge(drawing.model), batch_size=8,
            tell=advance_of(advance), num_inference_steps=settings["steps"],
            guidance_scale=settings["guidance"],
        )  # fmt: skip
    show.console.print(f"open {page.resolve()}")
    return page


def _shown(model: str, prompts: Path | None, concepts: Sequence[str]) -> list[Labelled]:
    """The table's, or of the embedded model eight with the concepts and eight without."""
    if prompts is not None:
        return read(str(prompts))
    if not is_embedded(model):
        raise ConfigError(f"what shall {model} draw? pass --prompts TABLE")
    rows = [Labelled(Prompt(r.prompt.text, i), r.labels) for i, r in enumerate(methods.asked(1))]
    own = [row for row in rows if any(holds(row, concept) for concept in concepts)]
    rest = [row for row in rows if row not in own]
    return _few(own, 8) + _few(rest, 8)


def _few(rows: Sequence[Labelled], count: int) -> list[Labelled]:
    return list(rows[:: max(1, len(rows) // count)][:count])


def _judge(model: str) -> Any:
    if not is_embedded(model):
        return None
    from vision_sae.assets.judge import Judge

    return Judge.load()


# ---- sweep and evaluate


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
        seen = observe(adapter, saes, rows, [concept], candidates=96, tell=advance_of(advance))
    plans = {
        site: plan_for(_at(seen, site), concept, choice) for site in saes
    }  # alone, as pairs are followed with the others' edits in place
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
    targets = world.targets(concept, "validation", 1)
    targets = targets[:: max(1, len(targets) // pictures)][:pictures]
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
        saes = saes_of(EMBEDDED, None, ()) if _need_saes(loaded) else {}
        name = f"plan {_digest(plans)}"  # another plan is another method: OUT may hold cells
        given: Method = _Given(loaded, saes, name)
        more, chosen = {name: lambda: given}, [*chosen, name]
    tell = show.console.print
    cells = run_benchmark(out, quick=quick, concepts=concepts, methods=chosen, more=more, tell=tell)
    if as_json:
        bare = [{k: v for k, v in cell.items() if k != "sheet"} for cell in cells]
        show.as_json(json.loads(json.dumps(bare)))
    else:
        show.results.print(as_text(cells), soft_wrap=True)
    show.console.print(f"open {(out / 'index.html').resolve()}")
    return cells


# ---- demo


def demo(out: Path) -> Path:
    """A plan and its page below `out`; a plan that is there is not made again."""
    plan = out / "pizza"
    if not (plan / DESCRIPTION).exists():
        find(Asked(EMBEDDED, "object:pizza", (), None), plan, {}, None, False, False)
    return show_plans([plan], Drawing(EMBEDDED, (), None, None), None, out / "page", True)
