"""What pictures show, by any judge or by a CLIP, and what a removal scores by it."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vision_sae.errors import DataError, require
from vision_sae.model.adapter import TextImageAdapter
from vision_sae.recipes.unlearn.draw import draw, unit
from vision_sae.recipes.unlearn.prompts import (
    VALIDATION_SEED,
    Labelled,
    check,
    concepts_of,
    few,
    holds,
    parse,
)
from vision_sae.recipes.unlearn.removal import Removal

Read = dict[str, str]  # factor -> the value that a picture shows


def read(judge: Any, pictures: Float[Tensor, "n 3 h w"], batch: int = 256) -> list[Read]:
    """What each picture shows in each factor.

    `judge` takes pictures in 0..1 and gives logits [n classes] by factor, as a mapping or a
    NamedTuple; the classes of the factor "object" are `judge.objects`.
    """
    read_all: list[Read] = []
    for part in pictures.split(batch):
        with torch.no_grad():
            logits = judge(part)
        by_factor = logits if isinstance(logits, Mapping) else logits._asdict()
        named = [
            [(f, getattr(judge, f"{f}s")[i]) for i in of_factor.argmax(1).tolist()]
            for f, of_factor in by_factor.items()
        ]
        read_all += [dict(one) for one in zip(*named, strict=True)]
    return read_all


class ZeroShot:
    """A model that embeds images and texts (CLIP, SigLIP) as a judge of a table's factors.

    A value looks like the mean of the prompts that ask for it; logits are cosines with these.
    """

    def __init__(self, adapter: TextImageAdapter, prompts: Sequence[Labelled]) -> None:
        self.adapter = adapter
        texts = sorted({row.prompt.text for row in prompts})
        embedded = dict(zip(texts, adapter.embed_texts(texts).float().cpu(), strict=True))
        self.looks: dict[str, Tensor] = {}
        for concept in concepts_of(prompts):
            factor, value = parse(concept)
            mine = sorted({row.prompt.text for row in prompts if holds(row, concept)})
            look = F.normalize(torch.stack([embedded[text] for text in mine]).mean(0), dim=0)
            before = self.looks.get(factor, look[:0].view(0, len(look)))
            self.looks[factor] = torch.cat([before, look[None]])
            setattr(self, f"{factor}s", (*getattr(self, f"{factor}s", ()), value))

    def __call__(self, pictures: Float[Tensor, "n 3 h w"]) -> dict[str, Float[Tensor, "n v"]]:
        image = require("PIL.Image", "data").fromarray
        pixels = (pictures.clamp(0, 1) * 255).round().byte().movedim(1, 3).cpu().numpy()
        prepared = self.adapter.prepare([image(one) for one in pixels])
        embedded = self.adapter.embed_images(prepared).float().cpu()
        return {factor: embedded @ looks.T for factor, looks in self.looks.items()}


def rates(concept: str, rows: Sequence[Labelled], shown: Sequence[Read]) -> dict[str, float]:
    """UA, IRA and CRA in 0..1 of pictures asked for by `rows`, some with the concept, some without.

    UA: share of those with the concept that are not read as it. IRA: accuracy of its factor on the
    rest. CRA: accuracy of the other factors, as much on the one kind as on the other; left out
    where the judge reads no other.
    """
    factor, _ = parse(concept)
    mine = [holds(row, concept) for row in rows]
    hits = {
        f: [row.labels[f] == one[f] if row.labels.get(f) else None
            for row, one in zip(rows, shown, strict=True)]
        for f in shown[0]
    }  # fmt: skip
    found = {
        "UA": 1 - _share(hits[factor], mine, True),
        "IRA": _share(hits[factor], mine, False),
    }
    rest = [_share(hits[f], mine, own) for f in hits if f != factor for own in (True, False)]
    known = [share for share in rest if share == share]
    return found | ({"CRA": fmean(known)} if known else {})


def _share(hits: Sequence[bool | None], mine: Sequence[bool], own: bool) -> float:
    some = [
        hit for hit, is_own in zip(hits, mine, strict=True) if is_own is own and hit is not None
    ]
    return fmean(some) if some else float("nan")


@dataclass(frozen=True)
class Trial:
    """Validation pictures of one concept, half of them asked with it: what a removal does to them.

    Of every prompt of a table once, on seeds of its own: for emoji-diffusion those of the
    benchmark's validation split, which statistics and test pictures do not have.
    """

    pipe: Any
    judge: Any
    concept: str
    rows: Sequence[Labelled]
    settings: Mapping[str, Any] = field(default_factory=dict)  # of `draw`

    @classmethod
    def of(
        cls, adapter: Any, judge: Any, prompts: Sequence[Labelled], concept: str, pictures: int,
        batch: int = 64,
    ) -> "Trial":  # fmt: skip
        """`pictures` of each kind at most. Raises DataError for a judge that does not fit."""
        check(prompts, concept)
        _check_judge(judge, prompts, concept)
        rows = validation(prompts)
        own = few([row for row in rows if holds(row, concept)], pictures)
        random.Random(0).shuffle(rows)
        rest = [row for row in rows if not holds(row, concept)][:pictures]
        settings = {"steps": adapter.steps, "guidance": adapter.guidance, "batch": batch}
        return cls(adapter.pipe, judge, concept, [*own, *rest], settings)

    def __call__(self, removal: Removal) -> dict[str, float]:
        with removal(self.pipe) as run:
            return self.scores(run)

    def scores(self, run: Any) -> dict[str, float]:
        """UA, IRA and CRA of what draws: a pipeline, or what a removal gives."""
        prompts = [row.prompt for row in self.rows]
        drawn = draw(run, [p.text for p in prompts], [p.seed for p in prompts], **self.settings)
        return rates(self.concept, self.rows, read(self.judge, unit(drawn)))


def validation(prompts: Sequence[Labelled]) -> list[Labelled]:
    """Every prompt once, with a seed of its own that is not the table's."""
    once = {(row.prompt.text, tuple(row.labels.items())): row for row in reversed(prompts)}
    rows = list(reversed(once.values()))
    return [
        Labelled(row.prompt._replace(seed=VALIDATION_SEED + i), row.labels)
        for i, row in enumerate(rows)
    ]


def _check_judge(judge: Any, prompts: Sequence[Labelled], concept: str) -> None:
    """A judge must read the concept's factor, and know its value."""
    factor, value = parse(concept)
    known = getattr(judge, f"{factor}s", ())
    if value not in known:
        told = ", ".join(known) or f"nothing of {factor!r}"
        raise DataError(f"the judge does not know {concept}; it knows {told}")
