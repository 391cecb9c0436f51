"""What each latent does on the prompts of each concept, at each timestep; nothing is stored.

Shape key: c concepts, T timesteps, s latents, m chosen latents, n prompts, b of a batch.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from vision_sae.errors import CheckpointError, ConfigError, DataError, UnknownName
from vision_sae.extract import Reading, activations_of
from vision_sae.files import write_bytes
from vision_sae.model.adapter import StepAdapter
from vision_sae.model.probing import probe_sites
from vision_sae.recipes.unlearn.prompts import Labelled, concepts_of, holds
from vision_sae.sae import SAE

Tell = Callable[[int], None]
KEPT = 2**30  # bytes of token-mean codes of all latents that `observe` keeps


class Contrast(NamedTuple):
    """A concept's prompts against the others, [T s] each."""

    mean: Float[Tensor, "T s"]
    other: Float[Tensor, "T s"]
    variance: Float[Tensor, "T s"]
    other_variance: Float[Tensor, "T s"]
    active: Float[Tensor, "T s"]
    other_active: Float[Tensor, "T s"]


@dataclass(frozen=True, eq=False)
class Statistics:
    """Of one site: sums over prompts of token-mean codes, their squares, and the active shares.

    The last row of each is over all prompts, so that the others are the total minus a concept.
    """

    concepts: tuple[str, ...]
    timesteps: tuple[int, ...]
    count: Float[Tensor, " c1"]
    sums: Float[Tensor, "c1 T s"]
    squares: Float[Tensor, "c1 T s"]
    actives: Float[Tensor, "c1 T s"]

    def contrast(self, concept: str, against: str | None = None) -> Contrast:
        """The concept against every other prompt, or against another concept's.

        Raises UnknownName, and DataError where there is no other prompt.
        """
        i = self._row(concept)
        if against is None:
            rest, totals = self.count[-1] - self.count[i], [t[-1] - t[i] for t in self._sums]
        else:
            j = self._row(against)
            rest, totals = self.count[j], [t[j] for t in self._sums]
        if not rest:
            raise DataError(f"all {int(self.count[-1])} prompts ask for {concept}; add others")
        mean, square, active = (t[i] / self.count[i] for t in self._sums)
        other, squares, actives = (total / rest for total in totals)
        spreads = [(q - m.square()).clamp(min=0) for q, m in ((square, mean), (squares, other))]
        return Contrast(mean, other, spreads[0], spreads[1], active, actives)

    @property
    def _sums(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.sums, self.squares, self.actives

    def _row(self, concept: str) -> int:
        if concept not in self.concepts:
            raise UnknownName("concept", concept, self.concepts)
        return self.concepts.index(concept)

    @property
    def published_threshold(self) -> Float[Tensor, "T s"]:
        """SAeUron's theta: the mean over concepts of their mean codes."""
        means: Tensor = (self.sums[:-1] / self.count[:-1, None, None]).mean(0)
        return means

    def save(self, path: Path) -> None:
        tensors = {name: getattr(self, name) for name in ("count", "sums", "squares", "actives")}
        tensors["timesteps"] = torch.tensor(self.timesteps)
        write_bytes(path, save(tensors, {"concepts": json.dumps(self.concepts)}))

    @classmethod
    def load(cls, path: Path) -> "Statistics":
        """Raises CheckpointError for what `save` did not write."""
        try:
            with safe_open(path, "pt") as file:
                concepts = tuple(json.loads((file.metadata() or {})["concepts"]))
                found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            times = tuple(found.pop("timesteps").tolist())
            return cls(concepts, times, **found)
        except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
            raise CheckpointError(
                f"{path} holds no statistics of concepts: {type(error).__name__} {error}"
            ) from None


class Means(NamedTuple):
    """Token means of one batch at one site: of the codes, and of their being active."""

    codes: Float[Tensor, "b T s"]
    active: Float[Tensor, "b T s"]


def collect(
    adapter: StepAdapter,
    saes: Mapping[str, SAE],
    prompts: Sequence[Labelled],
    *,
    batch_size: int = 64,
    kept: dict[str, list[Tensor]] | None = None,
    tell: Tell = lambda prompts: None,
) -> dict[str, Statistics]:
    """The statistics of every site and of every concept of the prompts, in one pass of sampling.

    Memory is that of the sums and of one batch, and of what `kept` is given: each batch's
    token-mean codes [b T s] by site. Raises ConfigError for an adapter that keeps both
    halves of the guided batch, DataError for prompts without concepts.
    """
    concepts = concepts_of(prompts)
    if not concepts:
        raise DataError(
            f"{len(prompts)} prompts, and none of them has a label such as object=pizza"
        )
    member = torch.tensor([[holds(row, c) for row in prompts] for c in concepts])
    member = torch.cat([member, torch.ones_like(member[:1])]).float()  # [c + 1, n]
    sums: dict[str, list[Tensor]] = {}
    for some, found in _means(adapter, saes, prompts, batch_size):
        part = member[:, some]
        for site, (codes, active) in found.items():
            added = [_per_concept(part, t) for t in (codes, codes.square(), active)]
            old = sums.get(site)
            sums[site] = [a + b for a, b in zip(old, added, strict=True)] if old else added
            if kept is not None:
                kept.setdefault(site, []).append(codes)
        tell(some.stop - some.start)
    return {
        site: Statistics(concepts, adapter.timesteps, member.sum(1), *parts)
        for site, parts in sums.items()
    }


def times_sampled(
    adapter: StepAdapter, saes: Mapping[str, SAE], prompts: Sequence[Labelled]
) -> int:
    """How often `observe` samples the prompts: once where the codes of all latents fit in KEPT."""
    each = 4 * len(adapter.timesteps) * sum(sae.config.s for sae in saes.values())
    return 1 if len(prompts) * each <= KEPT else 2


def _per_concept(member: Float[Tensor, "c1 b"], codes: Float[Tensor, "b T s"]) -> Tensor:
    return (member @ codes.flatten(1)).view(len(member), *codes.shape[1:])


def pooled(
    adapter: StepAdapter,
    saes: Mapping[str, SAE],
    prompts: Sequence[Labelled],
    latents: Mapping[str, Int[Tensor, " m"]],
    *,
    batch_size: int = 64,
    tell: Tell = lambda prompts: None,
) -> dict[str, Float[Tensor, "n T m"]]:
    """Token-mean codes of chosen latents for every prompt, for detectors."""
    parts: dict[str, list[Tensor]] = {site: [] for site in saes}
    for some, found in _means(adapter, saes, prompts, batch_size):
        for site, means in found.items():
            parts[site].append(means.codes[..., latents[site]])
        tell(some.stop - some.start)
    return {site: torch.cat(some) for site, some in parts.items()}


def _means(
    adapter: StepAdapter, saes: Mapping[str, SAE], prompts: Sequence[Labelled], batch_size: int
) -> Iterator[tuple[slice, dict[str, Means]]]:
    for some, acts in sampled(adapter, list(saes), prompts, batch_size):
        yield some, {site: _site_means(sae, acts[site]) for site, sae in saes.items()}


def sampled(
    adapter: StepAdapter, names: Sequence[str], prompts: Sequence[Labelled], batch_size: int
) -> Iterator[tuple[slice, dict[str, Float[Tensor, "b T t d"]]]]:
    """Sample the prompts: which of them a batch holds, and what each site gave.

    Raises ConfigError for an adapter that keeps both halves of the guided batch.
    """
    if adapter.half == "both":
        raise ConfigError(
            "statistics are of one half of the guided batch: make the adapter with half='cond' "
            "or half='uncond'"
        )
    batch: Any = adapter.prepare([prompts[0].prompt])
    sites = probe_sites(adapter, names, batch)
    reading = Reading(tuple(sites[site] for site in names))
    for start in range(0, len(prompts), batch_size):
        some = slice(start, min(start + batch_size, len(prompts)))
        asked = adapter.prepare([row.prompt for row in prompts[some]])
        acts = activations_of(adapter, asked, reading)
        split = (len(adapter.timesteps), -1)
        yield some, {site: acts[site].unflatten(1, split) for site in names}


@torch.no_grad()
def _site_means(sae: SAE, acts: Float[Tensor, "b T t d"]) -> Means:
    b, steps, t, d = acts.shape
    codes = sae.encode(acts.reshape(-1, d).float())
    place = (codes.rows // t) * codes.width + codes.indices
    total = torch.zeros(2, b * steps * codes.width)
    total[0].index_add_(0, place.cpu(), codes.values.cpu() / t)
    total[1].index_add_(0, place.cpu(), codes.active.float().cpu() / t)
    return Means(*total.view(2, b, steps, codes.width))
