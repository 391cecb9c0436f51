"""What sites give, with the concepts of the prompts that it was given for: rows for `assign`."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from vision_sae.errors import ConfigError
from vision_sae.model.adapter import StepAdapter
from vision_sae.recipes.unlearn.prompts import Labelled, check, holds
from vision_sae.recipes.unlearn.statistics import Tell, sampled


class LabelledRows(NamedTuple):
    """Tokens of one site, and which concepts (1) their prompts ask for."""

    rows: Float[Tensor, "n d"]
    labels: Float[Tensor, "n c"]

    def batches(self, size: int = 2048, seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Shuffled batches without end, each row as often as the others."""
        chance = torch.Generator().manual_seed(seed)
        left = torch.zeros(0, dtype=torch.int64)
        while True:
            while len(left) < size:
                left = torch.cat([left, torch.randperm(len(self.rows), generator=chance)])
            some, left = left[:size], left[size:]
            yield self.rows[some], self.labels[some]


def labelled_rows(
    adapter: StepAdapter,
    sites: Sequence[str],
    prompts: Sequence[Labelled],
    concepts: Sequence[str],
    *,
    per_step: int = 4,
    batch_size: int = 64,
    seed: int = 0,
    tell: Tell = lambda prompts: None,
) -> dict[str, LabelledRows]:
    """`per_step` random tokens of each site at each timestep of each prompt's sampling.

    n is prompts x timesteps x per_step. A token's labels are its prompt's, wherever in the picture
    it is. Raises ConfigError for per_step below 1, and what `check` raises for a concept.
    """
    if per_step < 1:
        raise ConfigError(f"per_step must be at least 1; got {per_step}")
    for concept in concepts:
        check(prompts, concept)
    asks = torch.tensor([[float(holds(row, c)) for c in concepts] for row in prompts])
    chance = torch.Generator().manual_seed(seed)
    rows: dict[str, list[Tensor]] = {site: [] for site in sites}
    labels: dict[str, list[Tensor]] = {site: [] for site in sites}
    for some, acts in sampled(adapter, sites, prompts, batch_size):
        for site, x in acts.items():
            few = _few_tokens(x.float().cpu(), per_step, chance)  # [b T p d]
            rows[site].append(few.flatten(0, 2))
            labels[site].append(asks[some].repeat_interleave(few.shape[1] * few.shape[2], 0))
        tell(some.stop - some.start)
    return {site: LabelledRows(torch.cat(rows[site]), torch.cat(labels[site])) for site in sites}


def _few_tokens(
    x: Float[Tensor, "b T t d"], count: int, chance: torch.Generator
) -> Float[Tensor, "b T p d"]:
    lots = torch.rand(x.shape[:3], generator=chance)
    places = lots.topk(min(count, x.shape[2]), dim=2).indices
    return x.gather(2, places[..., None].expand(-1, -1, -1, x.shape[3]))
