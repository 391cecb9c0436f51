"""Pictures before and after: the same prompts and seeds, without and with the plans."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vision_sae.data.prompts import Prompt
from vision_sae.errors import ConfigError, DataError
from vision_sae.files import write_bytes
from vision_sae.recipes.unlearn.apply import unlearn
from vision_sae.recipes.unlearn.judging import read
from vision_sae.recipes.unlearn.marks import acted
from vision_sae.recipes.unlearn.page import Labels, Pair, Verdict, asks_for, page, tallies
from vision_sae.recipes.unlearn.plan import Plan
from vision_sae.sae import SAE

Plans = Plan | str | Path | Sequence[Plan | str | Path]


def show(
    pipe: Any, plans: Plans, prompts: Sequence[Prompt | str], out: Path | str, **given: Any
) -> Path:
    """Write one HTML file that needs no others, of each prompt's plain and edited picture.

    `out` is the file, or a folder for an index.html. The rest is `compare`'s.

        show(pipe, "plan/", [Prompt("a pizza", seed=3)], "page.html", num_inference_steps=25)
    """
    return compare(pipe, plans, prompts, **given).write(out)


def compare(
    pipe: Any,
    plans: Plans,
    prompts: Sequence[Prompt | str],
    *,
    saes: Mapping[str, SAE] | None = None,
    labels: Labels | None = None,
    judge: Any = None,
    batch_size: int = 16,
    tell: Callable[[int], None] = lambda pairs: None,
    **settings: Any,
) -> "Comparison":
    """Draw every prompt without and with the plans.

    `settings` are of the pipeline's own call, such as num_inference_steps and guidance_scale; a
    prompt's own guidance comes first. `labels` says what each prompt asks for, such as {"object":
    "pizza", "style": "neon"}. `judge` reads the pictures (see judging.read). Raises DataError for
    no prompts or other than one label for each, ConfigError for a batch size below 1, and what
    `unlearn` does.
    """
    asked = [Prompt(p) if isinstance(p, str) else p for p in prompts]
    _check(asked, labels, batch_size)
    given = [plans] if isinstance(plans, (Plan, str, Path)) else plans
    chosen = [plan if isinstance(plan, Plan) else Plan.load(plan) for plan in given]
    pairs = draw_pairs(pipe, chosen, asked, saes=saes, batch_size=batch_size, tell=tell, **settings)
    return Comparison(chosen, pairs, labels, None if judge is None else verdicts(pairs, judge))


def _check(prompts: Sequence[Prompt], labels: Labels | None, batch_size: int) -> None:
    if not prompts:
        raise DataError("there are no prompts to show; pass at least one")
    if labels is not None and len(labels) != len(prompts):
        raise DataError(
            f"{len(labels)} labels for {len(prompts)} prompts; pass one for each, or none"
        )
    if batch_size < 1:
        raise ConfigError(f"batch_size must be at least 1; got {batch_size}")


@dataclass(frozen=True, eq=False)
class Comparison:
    """Pairs of pictures, what their prompts ask for, and what a judge reads in them."""

    plans: Sequence[Plan]
    pairs: Sequence[Pair]
    labels: Labels | None = None
    read: Sequence[Verdict] | None = None

    @property
    def concepts(self) -> list[str]:
        return [plan.concept for plan in self.plans]

    def write(self, out: Path | str) -> Path:
        """The page, at `out` or in the folder `out`; gives its path."""
        out = Path(out) if Path(out).suffix in (".html", ".htm") else Path(out) / "index.html"
        html = page(self.plans, self.pairs, self.labels, self.read)
        out.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(out, html.encode())
        return out

    def describe(self) -> dict[str, Any]:
        """What the page says, without the pictures, as data."""
        asked = [asks_for(self.concepts, one) for one in self.labels] if self.labels else []
        counts = dict(tallies(self.concepts, self.read, asked)) if self.read and asked else {}
        return {"removed": self.concepts, "counts": counts, "pictures": self.rows()}

    def rows(self) -> list[dict[str, Any]]:
        """One per prompt: `change` is the mean absolute difference of pixels in 0..1."""
        found: list[dict[str, Any]] = []
        for i, pair in enumerate(self.pairs):
            row: dict[str, Any] = {"prompt": pair.prompt.text, "seed": pair.prompt.seed}
            row["change"] = float((pair.plain - pair.edited).abs().mean())
            if self.labels:
                row["asks"] = dict(self.labels[i])
            if self.read:
                row |= {"plain": self.read[i][0], "edited": self.read[i][1]}
            found.append(row)
        return found


def draw_pairs(
    pipe: Any,
    plans: Sequence[Plan],
    prompts: Sequence[Prompt],
    *,
    saes: Mapping[str, SAE] | None = None,
    batch_size: int = 16,
    tell: Callable[[int], None] = lambda pairs: None,
    **settings: Any,
) -> list[Pair]:
    """Every prompt without and with the plans, in order; the noise is of each prompt's seed."""
    sites = sorted({site for plan in plans for site in plan.sites})
    pairs = []
    for batch in _batches(prompts, batch_size):
        plain = _draw(pipe, batch, settings)
        before = acted(pipe, sites, len(batch))
        with before as marks, unlearn(pipe, plans, saes=saes), marks.after():
            edited = _draw(pipe, batch, settings)
        masks: Sequence[Tensor | None] = marks.masks() or [None] * len(batch)
        pairs += [Pair(*four) for four in zip(batch, plain, edited, masks, strict=True)]
        tell(len(batch))
    return pairs


def _batches(prompts: Sequence[Prompt], size: int) -> Iterator[list[Prompt]]:
    """Neighbours of one guidance, as a batch has one."""
    for _, alike in groupby(prompts, lambda prompt: prompt.guidance):
        some = list(alike)
        yield from (some[start : start + size] for start in range(0, len(some), size))


def _draw(
    pipe: Any, prompts: Sequence[Prompt], settings: Mapping[str, Any]
) -> Float[Tensor, "b 3 h w"]:
    guidance = prompts[0].guidance
    own = {} if guidance is None else {"guidance_scale": guidance}
    pixels: Tensor = pipe(
        prompt=[prompt.text for prompt in prompts],
        generator=[torch.Generator("cpu").manual_seed(prompt.seed) for prompt in prompts],
        output_type="pt",
        **{**settings, **own},
    ).images
    return pixels.float().cpu()


def verdicts(pairs: Sequence[Pair], judge: Any) -> list[Verdict]:
    """What the judge reads in each prompt's plain and in its edited picture, by factor."""
    found = read(judge, torch.stack([p for pair in pairs for p in (pair.plain, pair.edited)]))
    return list(zip(found[::2], found[1::2], strict=True))
