"""Difference of means: the plainest steering, at the same sites and without an SAE.

Shape key: T timesteps, d width of a site, b images, t positions, r table rows (timesteps 0..1000).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vision_sae.adapters.diffusion import TrajectoryAdapter
from vision_sae.adapters.diffusion_inputs import denoiser_of
from vision_sae.data.prompts import Prompt
from vision_sae.errors import ConfigError
from vision_sae.extract import Reading, activations_of
from vision_sae.model.hooks import edit
from vision_sae.model.probing import probe_sites
from vision_sae.recipes.unlearn.baselines.words import VocabularyWords, Words, asked, left_alone
from vision_sae.recipes.unlearn.calls import Guidance
from vision_sae.recipes.unlearn.change import Clock, as_tokens, row_of, spread
from vision_sae.recipes.unlearn.removal import Draw, Removal

Way = Literal["replace", "project"]
Where = Literal["everywhere", "image"]


class Moments(NamedTuple):
    """Of token-mean activations per timestep, over images."""

    images: int
    mean: Float[Tensor, "T d"]
    covariance: Float[Tensor, "T d d"]


class Direction(NamedTuple):
    """What separates a concept's images from others at one site."""

    timesteps: Int[Tensor, " T"]
    concept: Float[Tensor, "T d"]
    other: Float[Tensor, "T d"]
    detector: Float[Tensor, "T d"]
    bias: Float[Tensor, " T"]


@dataclass(frozen=True)
class DifferenceOfMeans:
    """Moves each token from the mean of the concept's prompts towards that of the others.

    With v = concept - other, means over images and positions at the call's timestep:

        replace   x - strength * v
        project   x - strength * max(0, <x - other, v> / <v, v>) v

    everywhere, or per `image` where a linear detector (Fisher's, on the token mean; `ridge` is the
    share of the mean variance added to every direction) finds the concept. Means are taken along
    `steps` denoising steps, every n-th, with `images` per set of prompts, and interpolated between
    timesteps. Only the conditional half is changed. Raises ConfigError for settings, UnknownName
    for a site.
    """

    sites: Sequence[str]
    strength: float = 1.0
    way: str = "replace"
    where: str = "image"
    steps: int = 25
    every: int = 1
    guidance: float = 3.0
    images: int = 160
    batch_size: int = 32
    ridge: float = 0.1
    seed: int = 0
    words: Words = field(default_factory=VocabularyWords)
    name: str = "difference of means"
    known: dict[Any, Any] = field(default_factory=dict)  # what was learnt already

    def __post_init__(self) -> None:
        for what, value, allowed in (
            ("way", self.way, get_args(Way)),
            ("where", self.where, get_args(Where)),
        ):
            if value not in allowed:
                raise ConfigError(f"{what} must be {' or '.join(allowed)}; got {value!r}")
        if not self.sites:
            raise ConfigError("difference of means needs at least one site")

    def fit(self, pipe: Any, concepts: Sequence[str]) -> Removal:
        """Each concept is learnt once for one pipeline and one set of removed concepts."""
        learnt = [
            self._once((pipe, one, tuple(concepts)), partial(self.learn, pipe, one, concepts))
            for one in concepts
        ]
        return self.removal(learnt)

    def _once(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self.known:
            self.known[key] = make()
        return self.known[key]

    def learn(
        self, pipe: Any, concept: str, removed: Sequence[str] = ()
    ) -> Mapping[str, Direction]:
        """A concept's direction at each site; `removed` concepts are not among the others."""
        adapter = TrajectoryAdapter(
            pipe, steps=self.steps, every=self.every, guidance=self.guidance, name="means"
        )
        mine = partial(self._moments, adapter, asked(self.words, concept), self.seed)
        of = self._once((pipe, concept), mine)  # whatever else is removed
        away = left_alone(self.words, concept, [*removed, concept])
        other = self._moments(adapter, away, self.seed + self.images)
        times = torch.tensor(adapter.timesteps)
        return {s: self._direction(times, of[s], other[s]) for s in self.sites}

    def removal(self, learnt: Sequence[Mapping[str, Direction]]) -> Removal:
        """A removal from what was learnt of each concept."""

        @contextmanager
        def removal(pipe: Any) -> Iterator[Draw]:
            denoiser, guided = denoiser_of(pipe), Guidance(pipe)
            clock = Clock(denoiser)
            with ExitStack() as stack:
                stack.enter_context(clock.following(denoiser))
                stack.enter_context(guided.following())
                for site in self.sites:
                    directions = [each[site] for each in learnt]
                    change = _Change(self, directions, clock, guided)
                    stack.enter_context(edit(denoiser, site, change))
                yield pipe

        return removal

    def _moments(
        self, adapter: TrajectoryAdapter, prompts: Sequence[str], seed: int
    ) -> dict[str, Moments]:
        """Streamed: nothing but sums is kept."""
        asks = [Prompt(prompts[i % len(prompts)], seed + i) for i in range(self.images)]
        found = probe_sites(adapter, list(self.sites), adapter.prepare(asks[:1]))
        reading = Reading(tuple(found[site] for site in self.sites), "pooled")
        sums: dict[str, tuple[Any, Any]] = dict.fromkeys(self.sites, (0.0, 0.0))
        for start in range(0, len(asks), self.batch_size):
            batch = adapter.prepare(asks[start : start + self.batch_size])
            for site, x in activations_of(adapter, batch, reading).items():
                x = x.double().cpu()
                first, second = sums[site]
                sums[site] = first + x.sum(0), second + torch.einsum("bti,btj->tij", x, x)
        return {site: _moments_of(len(asks), *sums[site]) for site in self.sites}

    def _direction(self, times: Tensor, of: Moments, other: Moments) -> Direction:
        """Fisher's discriminant beside the means."""
        covariance = (of.covariance + other.covariance) / 2
        variance = covariance.diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-12)
        eye = torch.eye(covariance.shape[1], dtype=covariance.dtype)
        regular = covariance + self.ridge * variance[:, None, None] * eye
        weight = torch.linalg.solve(regular, of.mean - other.mean)
        bias = -(weight * (of.mean + other.mean) / 2).sum(1)
        tables = (of.mean, other.mean, weight, bias)
        return Direction(times, *(table.float() for table in tables))


def _moments_of(n: int, first: Tensor, second: Tensor) -> Moments:
    mean = first / n
    return Moments(n, mean, second / n - mean[:, :, None] * mean[:, None, :])


class _Change:
    """What is done to one site's tensor."""

    def __init__(
        self,
        settings: DifferenceOfMeans,
        directions: Sequence[Direction],
        clock: Clock,
        guided: Guidance,
    ) -> None:
        self.settings, self.clock, self.guided = settings, clock, guided
        self.tables = [_Tables.of(direction) for direction in directions]

    @torch.no_grad()
    def __call__(self, output: Tensor) -> Tensor:
        if not self.settings.strength:
            return output
        tokens, back = as_tokens(output, self.tables[0].other.shape[1])
        half = len(tokens) // 2 if self.guided() else 0
        delta = back(self.delta(tokens[half:].float()).to(output.dtype))
        if not half:
            return output + delta
        return torch.cat([output[:half], output[half:] + delta])

    def delta(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        """The sum over concepts; each reads x as it came."""
        total = torch.zeros_like(x)
        for i, table in enumerate(self.tables):
            if table.other.device != x.device:
                table = self.tables[i] = table.to(x.device)
            total = total + self._one(x, table, self.clock.now)
        return total

    def _one(self, x: Float[Tensor, "b t d"], tables: "_Tables", row: Any) -> Tensor:
        concept, other, detector, bias = (row_of(table, row) for table in tables)
        v = concept - other
        if self.settings.way == "project":
            along = ((x - other) @ v / (v @ v).clamp(min=1e-12)).clamp(min=0)
            moved = along[..., None] * v
        else:
            moved = v.expand_as(x)
        if self.settings.where == "image":
            found = x.mean(1) @ detector + bias > 0
            moved = moved * found[:, None, None]
        return -self.settings.strength * moved


class _Tables(NamedTuple):
    """A direction's tables, one row per timestep."""

    concept: Float[Tensor, "r d"]
    other: Float[Tensor, "r d"]
    detector: Float[Tensor, "r d"]
    bias: Float[Tensor, "r 1"]

    @classmethod
    def of(cls, found: Direction) -> "_Tables":
        tables = (found.concept, found.other, found.detector, found.bias[:, None])
        return cls(*(spread(table, found.timesteps) for table in tables))

    def to(self, device: torch.device) -> "_Tables":
        return _Tables(*(table.to(device) for table in self))
