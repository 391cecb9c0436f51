"""What the options of `vision-sae unlearn` name: models, prompts, SAEs, settings."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vision_sae.cli import show
from vision_sae.errors import ConfigError, MismatchError
from vision_sae.jobs.loading import load_sae
from vision_sae.model.adapter import TextImageAdapter, fingerprint, load_adapter
from vision_sae.recipes.unlearn import methods
from vision_sae.recipes.unlearn.baselines.words import VocabularyWords
from vision_sae.recipes.unlearn.choice import BEST, Choice
from vision_sae.recipes.unlearn.cli import EMBEDDED
from vision_sae.recipes.unlearn.judging import ZeroShot
from vision_sae.recipes.unlearn.plan import Plan
from vision_sae.recipes.unlearn.prompts import Labelled, parse, read
from vision_sae.sae import SAE


class Asked(NamedTuple):
    """What to look for, and where."""

    model: str
    concept: str
    saes: Sequence[str]
    prompts: Path | None
    judge: str | None = None
    batch: int | None = None  # pictures at a time


def usual_for(concept: str) -> Choice:
    """The settings that the benchmark uses for the concept's factor."""
    return methods.USUAL.get(parse(concept)[0], BEST)


def window_of(text: str) -> tuple[int, int]:
    """ "200:800". Raises ConfigError."""
    found = re.fullmatch(r"(\d+):(\d+)", text)
    if not found:
        raise ConfigError(f"--window takes FROM:TO in timesteps, as 200:800; got {text!r}")
    return int(found[1]), int(found[2])


def prompts_of(asked: Asked, per_pair: int = 4) -> list[Labelled]:
    """The table's; by default every pair that emoji-diffusion knows."""
    if asked.prompts is not None:
        return read(str(asked.prompts))
    if not is_embedded(asked.model):
        raise ConfigError(
            f"which prompts of {asked.model} ask for {asked.concept}? pass --prompts TABLE, with "
            "the columns prompt, seed and one per factor"
        )
    return methods.asked(per_pair)


def words_of(asked: Asked) -> str:
    """What a concept is called in prompts: "pizza", and of emoji-diffusion "neon style"."""
    if is_embedded(asked.model):
        return VocabularyWords().words(asked.concept)
    return parse(asked.concept)[1]


def is_embedded(model: str) -> bool:
    return re.split("[:?]", model)[0] == EMBEDDED


def batch_of(model: str, given: int | None) -> int:
    """Pictures that are drawn at a time: large ones need gigabytes each."""
    return given or (64 if is_embedded(model) else 4)


def judge_of(model: str, given: str | None, rows: Sequence[Labelled]) -> Any:
    """Who reads the pictures: a CLIP that is named, or emoji-diffusion's own; else nobody.

    Raises ConfigError for a model that embeds no images and texts.
    """
    if given is None and is_embedded(model):
        from vision_sae.assets.judge import Judge

        return Judge.load()
    if given is None:
        return None
    adapter = load_adapter(given)
    if not isinstance(adapter, TextImageAdapter):
        raise ConfigError(
            f"{given} embeds no images and texts in one space, so it cannot judge pictures by "
            "words; take a CLIP, as open_clip:ViT-B-32/laion2b_s34b_b79k"
        )
    return ZeroShot(adapter, rows)


def need_judge(model: str, given: str | None, rows: Sequence[Labelled]) -> Any:
    """`judge_of`, and ConfigError where there is none."""
    judge = judge_of(model, given, rows)
    if judge is None:
        raise ConfigError(
            f"who says what {model} has drawn? pass --judge, a model that embeds images and texts, "
            "as open_clip:ViT-B-32/laion2b_s34b_b79k; in Python any callable (judging.Trial)"
        )
    return judge


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


def need_saes(plans: Sequence[Plan]) -> bool:
    edits = [edit for plan in plans for edit in plan.edits]
    return any(edit.readout is None or edit.saeuron_sign for edit in edits)


def tell_next(out: Path) -> None:
    show.console.print(f"{out}: draw with `vision-sae unlearn apply {out} --prompt ... --out ...`")


def advance_of(advance: show.Advance) -> Callable[[int], None]:
    return lambda n: advance(n, "")
