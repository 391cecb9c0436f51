"""The one training loop.

Each step: forward, FVU + AuxK, gradients off the atoms' directions, Adam, atoms back to unit norm.
Everything a step depends on is (weights, moments, counters, step number): a resumed run is exact.
"""

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from pydantic import Field, ValidationError
from torch import Tensor

from vision_sae import losses
from vision_sae.codes import Codes
from vision_sae.config import Frozen, plain_error
from vision_sae.errors import ConfigError, DataError
from vision_sae.resume import STATE, forget, load_state, save_state
from vision_sae.sae import SAE
from vision_sae.signals import uninterrupted
from vision_sae.statistics import calibrate, centre

THRESHOLD_RATE = 0.01  # of the running BatchTopK threshold, as SAELens'


@runtime_checkable
class Source(Protocol):
    """Where rows come from: a Store, or a MemoryStore around a tensor."""

    @property
    def rows(self) -> int: ...

    @property
    def width(self) -> int: ...

    def batches(self, size: int, *, seed: int = 0, start: int = 0) -> Iterator[Tensor]: ...

    def sample(self, n: int, *, seed: int = 0) -> Tensor: ...


class TrainConfig(Frozen):
    """How to train. `None` means: chosen from the other settings, as the comment says."""

    steps: int = Field(2000, ge=1)
    batch_size: int = Field(4096, ge=2)
    lr: float | None = Field(None, gt=0)  # 2e-4 / sqrt(s / 2**14)
    warmup: float = Field(0.05, ge=0, le=1)  # share of the steps
    decay: float = Field(0.2, ge=0, le=1)  # share of the steps, linear to 0
    auxk: float = Field(1 / 32, ge=0)  # weight of the AuxK loss
    k_aux: int | None = None  # d / 2
    dead_after: int | None = None  # rows without firing: a tenth of the run, 10 million at most
    centre: Literal["median", "mean", "zero"] = "median"  # start of b_dec
    scale: bool = True  # inputs to mean norm sqrt(d); folded into the weights at the end
    seed: int = 0

    @classmethod
    def of(cls, **options: Any) -> "TrainConfig":
        """A config from plain values. Raises ConfigError that says what is allowed."""
        try:
            return cls(**options)
        except ValidationError as error:
            raise ConfigError(plain_error(error)) from None

    def learning_rate(self, s: int) -> float:
        return self.lr if self.lr is not None else 2e-4 / math.sqrt(s / 2**14)

    def rows_until_dead(self) -> int:
        tenth = self.steps * self.batch_size // 10
        return self.dead_after if self.dead_after is not None else min(10_000_000, tenth)

    def factor(self, step: int) -> float:
        """The learning rate's warm-up and decay."""
        up = (step + 1) / max(1.0, self.warmup * self.steps)
        down = (self.steps - step) / max(1.0, self.decay * self.steps)
        return min(1.0, up, down)


OnLog = Callable[[int, dict[str, float]], None]


class Trainer:
    """The state of a run. `train` is the usual way in."""

    def __init__(self, sae: SAE, source: Source, config: TrainConfig) -> None:
        if source.width != sae.config.d:
            raise DataError(
                f"the SAE reads width {sae.config.d}, the activations have width {source.width}"
            )
        self.sae, self.source, self.config = sae.train(), source, config
        self.step = 0
        self.scale = 1.0
        device = sae.W_dec.device
        self.since_fired = torch.zeros(sae.config.s, dtype=torch.int64, device=device)
        self.adam = torch.optim.Adam(
            sae.parameters(), lr=config.learning_rate(sae.config.s), eps=6.25e-10, fused=True
        )

    def start(self) -> None:
        """Learn scale and centre from a sample of the data."""
        sample = self.source.sample(2**15, seed=self.config.seed)
        _check_finite(sample, "a sample of the activations")
        middle = centre(sample, self.config.centre)
        if self.config.scale:
            norm = float((sample - middle).norm(dim=1).mean())
            self.scale = math.sqrt(self.sae.config.d) / norm if norm > 0 else 1.0
        with torch.no_grad():
            self.sae.b_dec.copy_(middle * self.scale)

    def run(self, on_log: OnLog, every: int, on_step: Callable[[], None]) -> None:
        c = self.config
        for rows in self.source.batches(c.batch_size, seed=c.seed, start=self.step):
            if self.step >= c.steps:
                return
            with uninterrupted():  # a checkpoint must not hold half a step
                step = self.step
                numbers = self.train_step(rows.to(self.since_fired.device), log=step % every == 0)
                self.step += 1
                if numbers:
                    on_log(step, numbers)
            on_step()

    def train_step(self, rows: Float[Tensor, "n d"], *, log: bool = False) -> dict[str, float]:
        sae, x = self.sae, rows * self.scale
        codes, x_hat = sae(x)
        fvu = losses.fvu(x, x_hat)
        dead = self.since_fired >= self.config.rows_until_dead()
        aux = fvu.new_zeros(())
        if self.config.auxk:
            k_aux = self.config.k_aux or max(1, sae.config.d // 2)
            aux = losses.auxk(sae, x, x - x_hat, dead, k_aux)
        loss = fvu + self.config.auxk * aux
        if not bool(loss.isfinite()):
            _check_finite(rows, f"the activations of step {self.step}")
            raise DataError(f"the loss is {float(loss)} at step {self.step}; try a lower --lr")
        self._update(loss)
        self._count(codes)
        if not log:
            return {}
        numbers = {"loss": loss, "fvu": fvu, "auxk": aux, "l0": codes.l0.float().mean()}
        numbers["dead"] = (self.since_fired >= self.config.rows_until_dead()).float().mean()
        lr = self.adam.param_groups[0]["lr"]
        return {name: float(value.detach()) for name, value in numbers.items()} | {"lr": lr}

    def _update(self, loss: Float[Tensor, ""]) -> None:
        self.adam.param_groups[0]["lr"] = self.config.learning_rate(
            self.sae.config.s
        ) * self.config.factor(self.step)
        self.adam.zero_grad(set_to_none=True)
        loss.backward()
        self.sae.remove_parallel_gradient()
        self.adam.step()
        self.sae.normalise_decoder()

    @torch.no_grad()
    def _count(self, codes: Codes) -> None:
        """Rows since each latent fired, and the running BatchTopK threshold."""
        self.since_fired += len(codes.values)
        active = codes.values > 0
        self.since_fired[codes.indices[active]] = 0
        if self.sae.config.sparsity.kind == "batchtopk" and bool(active.any()):
            least = codes.values[active].min()
            ema = self.sae.threshold_ema
            ema.copy_(least if bool(ema.isnan()) else ema.lerp(least, THRESHOLD_RATE))

    def finish(self) -> SAE:
        """Undo the scaling, and calibrate the inference threshold on a sample."""
        self.sae.fold_scale(self.scale)
        if self.sae.config.sparsity.kind == "batchtopk":
            sample = self.source.sample(2**14, seed=self.config.seed + 1)
            self.sae.threshold.copy_(calibrate(self.sae, sample))
        return self.sae.eval()


def _check_finite(rows: Tensor, what: str) -> None:
    bad = int((~rows.isfinite().all(1)).sum())
    if bad:
        raise DataError(f"NaN or infinity in {bad} of {len(rows)} rows of {what}")


def train(
    sae: SAE,
    source: Source,
    config: TrainConfig | None = None,
    *,
    folder: Path | None = None,
    on_log: OnLog | None = None,
    on_finish: Callable[[SAE], None] | None = None,
    log_every: int = 10,
    checkpoint_seconds: float = 60,
) -> SAE:
    """Train an SAE in place and return it in evaluation mode, in the data's units.

    With `folder`, the state is saved there every minute and on Ctrl-C, and a run that finds one
    resumes exactly. The state goes when the run is done, after `on_finish` has made the SAE safe.
    Raises DataError on NaN (naming the step), CheckpointError on other settings.
    """
    trainer = Trainer(sae, source, config or TrainConfig())
    if folder and (folder / STATE).exists():
        load_state(trainer, folder)
    else:
        trainer.start()
    saved = time.monotonic()

    def keep() -> None:
        nonlocal saved
        if folder and time.monotonic() - saved > checkpoint_seconds:
            save_state(trainer, folder)
            saved = time.monotonic()

    try:
        trainer.run(on_log or (lambda step, numbers: None), log_every, keep)
    except KeyboardInterrupt:
        if folder:
            save_state(trainer, folder)
        raise
    sae = trainer.finish()
    if on_finish:
        on_finish(sae)
    if folder:
        forget(folder)
    return sae
