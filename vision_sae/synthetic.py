"""Activations with known features in superposition, to see what an SAE recovers (recovery.py).

    x = a D + bias + noise,  a >= 0 sparse,  D unit directions, more of them than dimensions

Firing follows Zipf's law, with optional trees (a child fires only with its parent) and optional
correlation (a Gaussian copula of low rank), in the manner of SynthSAEBench (Chanin &
Garriga-Alonso 2026, arXiv 2602.14687). Every batch is a function of its seed and number.

Shape key: n rows, d width, f true features, r rank of the correlation.
"""

import math
from collections.abc import Iterator
from functools import partial
from itertools import count, islice
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn.functional import normalize

from vision_sae.config import Frozen

WORLD, BATCHES, SAMPLE, HELD_OUT = range(4)  # independent streams of random numbers
PIECE = 2**24  # activations of a sample that are made at a time
ROOM = 0.9  # exclusive siblings together fire on at most this share of their parent's rows


class SyntheticConfig(Frozen):
    """A world. `seed` chooses its directions and correlations; batches have seeds of their own."""

    d: int = Field(32, ge=1)
    features: int = Field(96, ge=1)
    l0: float = Field(4.0, gt=0)  # mean active features per row
    zipf: float = Field(0.5, ge=0)  # frequency of feature i: ~ i**-zipf
    most: float = Field(0.4, gt=0, le=1)  # frequency that no feature exceeds
    roots: int = Field(0, ge=0)  # trees; 0 for none. Features are numbered level by level
    branching: int = Field(4, ge=1)
    depth: int = Field(3, ge=1)  # levels below the roots
    exclusive: bool = False  # of the children of one parent, one fires at most
    correlation: float = Field(0.0, ge=0, lt=1)  # share of a firing's latent variance in common
    rank: int = Field(25, ge=1)
    magnitude: float = Field(1.0, gt=0)  # |N(magnitude, spread)| where a feature fires
    spread: float = Field(0.25, ge=0)
    bias: float = Field(0.0, ge=0)  # norm of a constant added to every row
    noise: float = Field(0.0, ge=0)  # standard deviation of each coordinate
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _fits(self) -> "SyntheticConfig":
        if (last := self.levels()[-1]).stop > self.features:
            raise ValueError(f"the trees hold {last.stop} features; there are {self.features}")
        if self._frequencies(math.inf).sum() < self.l0:
            raise ValueError(f"{self.features} features cannot reach an L0 of {self.l0}")
        return self

    def levels(self) -> list[range]:
        """The features of each level of the trees, roots first."""
        levels = [range(self.roots)]
        for _ in range(self.depth):
            start = levels[-1].stop
            levels.append(range(start, start + self.branching * len(levels[-1])))
        return levels

    def frequencies(self) -> Float[Tensor, " f"]:
        """The share of rows on which each feature fires; they sum to `l0`."""
        low, high = 0.0, 1.0
        while self._frequencies(high).sum() < self.l0:
            low, high = high, 2 * high
        for _ in range(60):
            middle = (low + high) / 2
            enough = self._frequencies(middle).sum() >= self.l0
            low, high = (low, middle) if enough else (middle, high)
        return self._frequencies(high)

    def _frequencies(self, factor: float) -> Float[Tensor, " f"]:
        """min(most, factor * i**-zipf), and never more often than the parent allows."""
        rank = torch.arange(1, self.features + 1, dtype=torch.float64)
        p = (factor * rank.pow(-self.zipf)).clamp(max=self.most)
        allowed = ROOM / self.branching if self.exclusive else 1.0
        for children, parents in self.families():
            bound = (allowed * p[parents]).repeat_interleave(self.branching)
            p[children] = torch.minimum(p[children], bound)
        return p

    def families(self) -> list[tuple[slice, slice]]:
        """(children, parents), level by level; each parent's children stand together."""
        levels = [slice(level.start, level.stop) for level in self.levels()]
        return list(zip(levels[1:], levels, strict=False))


class Draw(NamedTuple):
    """Rows, and the feature activations that made them."""

    x: Float[Tensor, "n d"]
    activations: Float[Tensor, "n f"]


class Synthetic:
    """A world that makes rows: a Source for `train`, endless and never the same row twice.

    The world is the same on every device; the random numbers of its rows are the device's own.
    """

    rows = 2**62  # endless

    def __init__(self, config: SyntheticConfig, *, device: torch.device | str = "cpu") -> None:
        self.config, self.width, self.device = config, config.d, torch.device(device)
        make = partial(torch.randn, generator=_generator("cpu", config.seed, WORLD))
        self.directions = normalize(make(config.features, config.d), dim=1).to(device)  # [f d]
        self.bias = config.bias * normalize(make(config.d), dim=0).to(device)  # [d]
        shared = normalize(make(config.features, config.rank), dim=1).to(device)
        self.factor = math.sqrt(config.correlation) * shared  # [f r]
        self.frequencies = config.frequencies()  # [f], exact if uncorrelated
        self.thresholds = -torch.special.ndtri(self._alone()).float().to(device)  # [f]

    def batches(
        self, size: int, *, seed: int = 0, start: int = 0, part: tuple[int, int] = (0, 1)
    ) -> Iterator[Float[Tensor, "n d"]]:
        """Endless, from batch number `start` on; with `part=(rank, size)` a share of each."""
        rank, parts = part
        return (self._draw(size, BATCHES, seed, i).x[rank::parts] for i in count(start))

    def sample(self, n: int, *, seed: int = 0) -> Float[Tensor, "n d"]:
        """Rows that no batch holds."""
        sizes = [len(part) for part in torch.arange(n).split(max(1, PIECE // self.config.features))]
        return torch.cat([self._draw(m, SAMPLE, seed, i).x for i, m in enumerate(sizes)])

    def held_out(self, size: int, batches: int, *, seed: int = 0) -> Iterator[Draw]:
        """Rows with their ground truth, which neither `batches` nor `sample` give."""
        return islice((self._draw(size, HELD_OUT, seed, i) for i in count()), batches)

    def _draw(self, n: int, stream: int, seed: int, number: int = 0) -> Draw:
        c = self.config
        generator = _generator(self.device, c.seed, stream, seed, number)
        normal = partial(torch.randn, generator=generator, device=self.device)
        fires = self._fires(n, generator)
        strengths = (c.magnitude + c.spread * normal(n, c.features)).abs()
        activations = torch.where(fires, strengths, 0.0)
        x = activations @ self.directions + self.bias
        return Draw(x + c.noise * normal(n, c.d) if c.noise else x, activations)

    def _fires(self, n: int, generator: torch.Generator) -> Bool[Tensor, "n f"]:
        """A latent Gaussian above its threshold, and the parent firing too."""
        c = self.config
        normal = partial(torch.randn, generator=generator, device=self.device)
        z = normal(n, c.features)
        if c.correlation:
            z = math.sqrt(1 - c.correlation) * z + normal(n, c.rank) @ self.factor.T
        fires: Tensor = z > self.thresholds
        for children, parents in c.families():
            siblings = fires[:, children].view(n, -1, c.branching)  # a view: changed in place
            siblings &= fires[:, parents, None]
            if c.exclusive:
                siblings &= _one_of(siblings, generator)
        return fires

    def _alone(self) -> Float[Tensor, " f"]:
        """How often each feature's Gaussian must pass, for its frequency to come out right."""
        p, c = self.frequencies.clone(), self.config
        for children, parents in c.families():
            given = self.frequencies[children].view(-1, c.branching)
            given = given / self.frequencies[parents, None]
            # one of m that pass alike is kept: 1 - (1 - p)^m = m given
            m = c.branching if c.exclusive else 1
            p[children] = (1 - (1 - m * given) ** (1 / m)).flatten()
        return p


def _one_of(fires: Bool[Tensor, "n g m"], generator: torch.Generator) -> Bool[Tensor, "n g m"]:
    """A random one of those that fire in each group."""
    lots = torch.rand(fires.shape, generator=generator, device=fires.device) * fires
    return torch.zeros_like(fires).scatter_(2, lots.argmax(2, keepdim=True), True)


def _generator(device: torch.device | str, *seeds: int) -> torch.Generator:
    """Random numbers that are a function of all the seeds."""
    state = np.random.SeedSequence(seeds).generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(state[0] >> np.uint64(1)))
