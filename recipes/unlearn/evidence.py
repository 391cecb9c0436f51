"""What plans are made from: statistics of every latent on the prompts of all concepts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vision_sae.errors import DataError
from vision_sae.recipes.unlearn.plan import sample_of, schedule_of
from vision_sae.recipes.unlearn.prompts import Labelled, check, concepts_of, parse
from vision_sae.recipes.unlearn.scores import SCORES
from vision_sae.recipes.unlearn.statistics import (
    Contrast,
    Statistics,
    Tell,
    collect,
    pooled,
    times_sampled,
)
from vision_sae.sae import SAE


@dataclass(frozen=True, eq=False)
class Evidence:
    """All that plans are made from: statistics of every latent, and codes of the candidates."""

    model: str
    weights: Float[Tensor, " samples"]
    schedule: Mapping[str, Any]
    saes: Mapping[str, SAE]
    prompts: Sequence[Labelled]
    statistics: Mapping[str, Statistics]
    candidates: Mapping[str, Int[Tensor, " m"]]
    codes: Mapping[str, Float[Tensor, "n T m"]]
    adapter: Any = None  # "transport" samples once more
    batch_size: int = 64


def observe(
    adapter: Any,
    saes: Mapping[str, SAE],
    prompts: Sequence[Labelled],
    concepts: Sequence[str],
    *,
    candidates: int = 48,
    batch_size: int = 64,
    tell: Tell = lambda prompts: None,
) -> Evidence:
    """Sample the prompts: statistics, and the codes of each concept's best candidates.

    In one pass where the codes of all latents fit in memory, in two otherwise (`times_sampled`);
    `tell` is told of each pass. Raises UnknownName for a concept with no prompts, DataError for
    one with no others.
    """
    for concept in concepts:
        check(prompts, concept)
    kept: dict[str, list[Tensor]] = {}
    once = times_sampled(adapter, saes, prompts) == 1
    found = collect(
        adapter, saes, prompts, batch_size=batch_size, kept=kept if once else None, tell=tell
    )
    best = {
        site: torch.cat([_top(s.contrast(c), saes[site], candidates) for c in concepts]).unique()
        for site, s in found.items()
    }
    if once:
        codes = {site: torch.cat([c[..., best[site]] for c in kept.pop(site)]) for site in found}
    else:
        codes = pooled(adapter, saes, prompts, best, batch_size=batch_size, tell=tell)
    return Evidence(
        adapter.name, sample_of(adapter.model), schedule_of(adapter.pipe), dict(saes),
        prompts, found, best, codes, adapter, batch_size,
    )  # fmt: skip


def _top(contrast: Contrast, sae: SAE, count: int) -> Int[Tensor, " m"]:
    """By the size of "difference", averaged over timesteps."""
    sizes = SCORES["difference"](contrast, sae.W_dec.detach()).abs().mean(0)
    return sizes.topk(min(count, len(sizes))).indices.sort().values


def nearest(evidence: Evidence, concept: str, avoid: Sequence[str] = ()) -> str:
    """The concept of the same factor whose mean codes are nearest, summed over sites.

    `avoid` is never chosen. Raises DataError when there is no other.
    """
    factor, _ = parse(concept)
    others = [c for c in concepts_of(evidence.prompts) if parse(c)[0] == factor]
    others = [c for c in others if c not in (concept, *avoid)]
    if not others:
        raise DataError(f"the prompts ask for no {factor} that could stand in for {concept}")
    return min(others, key=lambda other: _apart(evidence, concept, other))


def _apart(evidence: Evidence, concept: str, other: str) -> float:
    found = [s.contrast(concept, other) for s in evidence.statistics.values()]
    return sum(float((c.mean - c.other).square().sum()) for c in found)
