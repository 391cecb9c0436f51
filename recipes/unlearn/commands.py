"""The commands that find, draw and show, between their options and their output."""

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch

from vision_sae.cli import show
from vision_sae.data.prompts import Prompt
from vision_sae.errors import ConfigError, claim_folder, claim_new, require
from vision_sae.files import write_bytes, write_json
from vision_sae.model.adapter import load_adapter
from vision_sae.recipes.unlearn import methods
from vision_sae.recipes.unlearn.apply import unlearn
from vision_sae.recipes.unlearn.choice import choice_of
from vision_sae.recipes.unlearn.cli import EMBEDDED
from vision_sae.recipes.unlearn.draw import draw
from vision_sae.recipes.unlearn.evidence import Evidence, observe
from vision_sae.recipes.unlearn.find import plan_for
from vision_sae.recipes.unlearn.inputs import (
    Asked,
    advance_of,
    batch_of,
    is_embedded,
    judge_of,
    need_judge,
    need_saes,
    prompts_of,
    saes_of,
    tell_next,
    usual_for,
)
from vision_sae.recipes.unlearn.measuring import tuned
from vision_sae.recipes.unlearn.plan import DESCRIPTION, Plan
from vision_sae.recipes.unlearn.prompts import Labelled, check, few, holds, read
from vision_sae.recipes.unlearn.show import compare
from vision_sae.recipes.unlearn.statistics import times_sampled
from vision_sae.recipes.unlearn.tune import check_grid
from vision_sae.sae import SAE

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
    claim_new(out, DESCRIPTION, "a plan", overwrite=overwrite)
    choice = choice_of(settings, compat, usual_for(asked.concept))
    check_grid(grid)
    rows = prompts_of(asked)
    check(rows, asked.concept)
    judge = need_judge(asked.model, asked.judge, rows) if grid else None
    adapter: Any = load_adapter(asked.model)
    adapter.pipe.set_progress_bar_config(disable=True)
    saes = saes_of(asked.model, adapter, asked.saes)
    own = sum(holds(row, asked.concept) for row in rows) if choice.mode == "transport" else 0
    own *= choice.rounds
    looks = times_sampled(adapter, saes, rows) * len(rows)
    with show.progress("find", looks + own * (not grid), "prompts") as advance:
        tell, concepts = advance_of(advance), [asked.concept]
        batch = batch_of(asked.model, asked.batch)
        seen = observe(
            adapter, saes, rows, concepts,
            candidates=choice.detectors, batch_size=batch, tell=tell,
        )  # fmt: skip
        plan = None if grid else plan_for(seen, asked.concept, choice, tell=tell)
    plan = plan or tuned(asked.concept, seen, choice, grid, judge, as_json)
    plan.save(out)
    _tell_plan(plan, seen, out, as_json)
    return plan


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
    tell_next(out)


# ---- apply and show


class Drawing(NamedTuple):
    """With what pictures are drawn; None: the adapter's own."""

    model: str
    saes: Sequence[str]
    steps: int | None
    guidance: float | None
    batch: int = 8  # pictures at a time


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
        settings |= {"batch": drawing.batch, "tell": advance_of(advance)}
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
    wanted = bool(drawing.saes) or (need_saes(plans) and is_embedded(drawing.model))
    return adapter, saes_of(drawing.model, adapter, drawing.saes) if wanted else {}


def _settings(adapter: Any, drawing: Drawing) -> dict[str, Any]:
    guidance = adapter.guidance if drawing.guidance is None else drawing.guidance
    return {"steps": drawing.steps or adapter.steps, "guidance": guidance}


def _names(plans: Sequence[Plan]) -> str:
    return ", ".join(plan.concept for plan in plans)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60] or "empty"


def _write_picture(out: Path, name: str, picture: torch.Tensor) -> str:
    image = require("PIL.Image", "data").fromarray(picture.permute(1, 2, 0).numpy())
    data = io.BytesIO()
    image.save(data, "PNG")
    write_bytes(out / f"{name}.png", data.getvalue())
    return f"{name}.png"


def show_plans(
    plans: Sequence[Path],
    drawing: Drawing,
    prompts: Path | None,
    judge: str | None,
    out: Path,
    overwrite: bool,
    as_json: bool = False,
) -> Path:
    claim_folder(out, "index.html", overwrite=overwrite)
    chosen = [Plan.load(folder) for folder in plans]
    rows = _shown(drawing.model, prompts, [plan.concept for plan in chosen])
    adapter, saes = _opened(drawing, chosen)
    settings = _settings(adapter, drawing)
    who = judge_of(drawing.model, judge, rows)
    with show.progress("draw", len(rows), "pairs") as advance:
        found = compare(
            adapter.pipe, chosen, [row.prompt for row in rows], saes=saes,
            labels=[row.labels for row in rows], judge=who, batch_size=drawing.batch,
            tell=advance_of(advance), num_inference_steps=settings["steps"],
            guidance_scale=settings["guidance"],
        )  # fmt: skip
    page = found.write(out)
    if as_json:
        show.as_json(found.describe() | {"page": str(page)})
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
    return few(own, 8) + few(rest, 8)


# ---- demo


def demo(out: Path) -> Path:
    """A plan and its page below `out`; a plan that is there is not made again."""
    plan = out / "pizza"
    if not (plan / DESCRIPTION).exists():
        find(Asked(EMBEDDED, "object:pizza", (), None), plan, {}, None, False, False)
    drawing = Drawing(EMBEDDED, (), None, None)
    return show_plans([plan], drawing, None, None, out / "page", overwrite=True)
