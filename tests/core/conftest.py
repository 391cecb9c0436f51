"""Every family and variant, small: a test that asks for `case` runs on all of them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from vision_sae.families import base
from vision_sae.sae import SAE, SAEConfig
from vision_sae.store import MemoryStore
from vision_sae.train import TrainConfig, Trainer

D, S, OUT = 8, 24, 5


def randn(*shape: int, seed: int = 0, **options: Any) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), **options)


@dataclass(frozen=True)
class Case:
    """One variant: options of SAEConfig.of, and a small SAE, data and settings to go with it."""

    name: str
    options: dict[str, Any]

    @property
    def config(self) -> SAEConfig:
        return SAEConfig.of(D, S, **self.options)

    def new(self, seed: int = 0) -> SAE:
        """As training starts from it."""
        return SAE(self.config, seed=seed)

    def sae(self, seed: int = 0) -> SAE:
        """In float64, with all parameters and thresholds away from their special start."""
        sae = self.new(seed).double()
        with torch.no_grad():
            for i, parameter in enumerate(sae.parameters()):
                noise = randn(*parameter.shape, seed=100 + i, dtype=torch.float64)
                parameter += (0.4 if parameter.ndim > 1 else 0.1) * noise
            if sae.config.dictionary:
                C = sae.parametrizations.W_dec[0].C  # type: ignore[union-attr,index]
                C.copy_(randn(*C.shape, seed=50, dtype=torch.float64))
            if sae.config.atoms == "unit":
                sae.normalise_decoder()
            if self.config.sparsity.kind == "batchtopk":
                sae.threshold.fill_(0.6)
                sae.threshold_ema.fill_(0.5)
        return sae

    def rows(self, n: int = 12, seed: int = 3) -> Tensor:
        return randn(n, D, seed=seed, dtype=torch.float64) + 0.2

    def target(self, n: int = 12) -> Tensor | None:
        """What a transcoder shall write."""
        return randn(n, OUT, seed=4, dtype=torch.float64) if self.config.d_out else None

    def source(self, n: int = 256) -> MemoryStore:
        """Sparse sums of directions, off centre and in odd units."""
        on = torch.rand(n, 16, generator=torch.Generator().manual_seed(5)) < 0.15
        x = 5 * ((on * (1 + randn(n, 16, seed=6).abs())) @ randn(16, D, seed=7)) + 3
        return MemoryStore(x, x[:, :OUT] * 2 + 1 if self.config.d_out else None)

    def settings(self, **options: Any) -> TrainConfig:
        usual = {"steps": 8, "batch_size": 32, "lr": 3e-3, "dead_after": 96}
        return TrainConfig.of(**usual | options)

    def trainer(self, seed: int = 0, **options: Any) -> Trainer:
        trainer = Trainer(self.new(seed), self.source(), self.settings(**options))
        trainer.start()
        return trainer


NESTS = {
    "prefix": {"kind": "prefix", "shares": (0.25, 0.5, 1.0)},
    "sum": {"kind": "prefix", "shares": (0.1, 1.0), "reduction": "sum"},
    "random": {"kind": "random", "count": 4},
    "ks": {"kind": "k", "ks": (1, 2)},
    "reversed": {"kind": "k", "ks": (1, 3), "weighting": "reversed"},
    "both": {"kind": "both", "ks": (1, 3), "shares": (0.25, 0.5)},
    "own": {"kind": "k", "ks": (1, 2, 3), "own": True},
    "numbers": {"kind": "k", "ks": (1, 2, 3), "weighting": (3, 1, 4)},
    "balanced": {"kind": "both", "ks": (1, 3), "own": True, "weighting": "balanced"},
}
POINTS = {"kind": "archetypal", "points": 10, "delta": 0.5}
FREE = {"atoms": "free"}
COMPETING = {"atoms": "free", "rescale": True}
JUMP = {"family": "jumprelu", "start": 0.3, "bandwidth": 0.5, "coefficient": 0.3}
KERNELS = ("rectangle", "triangle", "epanechnikov", "quartic", "cosine", "gaussian")

OPTIONS: dict[str, dict[str, Any]] = {
    "topk": {"k": 3},
    "topk-multi": {"k": 2, "multi": 3},
    "topk-anneal": {"k": 2, "anneal_from": 8},
    "topk-free": {"k": 3, **FREE},
    "topk-competing": {"k": 3, **COMPETING},
    "topk-tied": {"k": 3, "tied": True},
    "topk-uncentred": {"k": 3, "centred": False},
    **{f"topk-nest-{name}": {"k": 3, "nest": nest} for name, nest in NESTS.items()},
    "topk-transcoder": {"k": 3, "d_out": OUT},
    "topk-skip": {"k": 3, "d_out": OUT, "skip": True},
    "topk-skip-nest": {"k": 3, "d_out": OUT, "skip": True, "nest": NESTS["prefix"]},
    "topk-archetypal": {"k": 3, "dictionary": POINTS},
    "topk-constant_norm": {"k": 3, "rows": "constant_norm"},
    "topk-layer_norm": {"k": 3, "rows": "layer_norm"},
    "batchtopk": {"family": "batchtopk", "k": 3},
    "batchtopk-unit": {"family": "batchtopk", "k": 3, "atoms": "unit"},
    "batchtopk-competing": {"family": "batchtopk", "k": 3, **COMPETING},
    "batchtopk-prefix": {"family": "batchtopk", "k": 3, "nest": NESTS["prefix"]},
    "batchtopk-both": {"family": "batchtopk", "k": 3, "nest": NESTS["both"]},
    "batchtopk-transcoder": {"family": "batchtopk", "k": 3, "d_out": OUT, "rescale": True},
    "abstopk": {"family": "abstopk", "k": 3},
    "abstopk-competing": {"family": "abstopk", "k": 3, **COMPETING},
    "groupmax": {"family": "groupmax", "k": 4},
    "groupmax-competing": {"family": "groupmax", "k": 4, **COMPETING},
    "relu": {"family": "relu", "coefficient": 0.3},
    "relu-free": {"family": "relu", "coefficient": 0.3, **FREE},
    "relu-p": {"family": "relu", "coefficient": 0.3, "p": 0.5},
    "relu-tied": {"family": "relu", "coefficient": 0.3, "tied": True},
    "relu-uncentred": {"family": "relu", "coefficient": 0.3, "centred": False},
    "relu-prefix": {"family": "relu", "coefficient": 0.3, "nest": NESTS["prefix"]},
    "relu-ks": {"family": "relu", "coefficient": 0.3, "nest": NESTS["ks"]},
    "relu-both": {"family": "relu", "coefficient": 0.3, "nest": NESTS["both"]},
    "relu-skip": {"family": "relu", "coefficient": 0.3, "d_out": OUT, "skip": True},
    "relu-archetypal": {"family": "relu", "coefficient": 0.3, "dictionary": POINTS},
    "panneal": {"family": "panneal", "coefficient": 0.3, "updates": 3},
    "panneal-free": {"family": "panneal", "coefficient": 0.3, **FREE},
    **{f"jumprelu-{mode}": {**JUMP, "mode": mode, "target": 4.0} for mode in ("tanh", "step")},
    **{f"jumprelu-{kernel}": {**JUMP, "mode": "step", "kernel": kernel} for kernel in KERNELS[1:]},
    "jumprelu-target": {**JUMP, "mode": "target", "target": 4.0},
    "jumprelu-theta-only": {**JUMP, "to_input": False},
    "jumprelu-free": {**JUMP, **FREE},
    "gated": {"family": "gated", "coefficient": 0.3},
    "gated-free": {"family": "gated", "coefficient": 0.3, **FREE},
    "mp": {"family": "mp", "k": 3},
    "mp-signed": {"family": "mp", "k": 3, "rectified": False},
    "mp-residual": {"family": "mp", "k": 5, "residual": 1.5},
}
CASES = {name: Case(name, options) for name, options in OPTIONS.items()}


@pytest.fixture(autouse=True)
def seeded() -> None:
    """What a test draws without a generator of its own is the same every time."""
    torch.manual_seed(0)


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    """All variants, or with `parametrize(..., indirect=True)` the named ones."""
    return CASES[request.param]


@pytest.fixture(params=["sparse", "dense"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Which form codes have in training, where a family can have both."""
    monkeypatch.setattr(base, "DENSE_FROM", 2.0 if request.param == "sparse" else -1.0)
    yield request.param


@pytest.fixture
def advance() -> Callable[[Trainer, int], list[dict[str, float]]]:
    """Some steps of a training, as the loop takes them; gives the numbers of each."""

    def some_steps(trainer: Trainer, steps: int) -> list[dict[str, float]]:
        size, seed = trainer.config.batch_size, trainer.config.seed
        batches = trainer.source.batches(size, seed=seed, start=trainer.step)
        numbers = []
        for _ in range(steps):
            numbers.append(trainer.train_step(next(batches), log=True))
            trainer.step += 1
            if trainer.step % trainer.config.validate_every == 0:
                trainer.validate()
        return numbers

    return some_steps
