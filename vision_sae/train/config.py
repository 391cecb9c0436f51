"""How to train, as frozen data."""

import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError

from vision_sae.config import Frozen, plain_error
from vision_sae.errors import ConfigError
from vision_sae.train.dead import Dead, parse_dead


class TrainConfig(Frozen):
    """How to train. `None` means: chosen from the other settings, as the comment says."""

    steps: int = Field(2000, ge=1)
    batch_size: int = Field(4096, ge=2)  # rows per step
    pieces: int = Field(1, ge=1)  # gradient accumulation: a batch goes through in so many parts

    lr: float | None = Field(None, gt=0)  # 2e-4 / sqrt(s / 2**14)
    warmup: float = Field(0.05, ge=0, le=1)  # share of the steps
    decay: float = Field(0.2, ge=0, le=1)  # share of the steps, to 0
    schedule: Literal["linear", "cosine"] = "linear"  # shape of the decay
    sparsity_warmup: float = Field(0.05, ge=0, le=1)  # share of the steps in which penalties rise
    bias_rate: float | None = Field(None, gt=0)  # lr of b_enc / lr: the family's usual one
    optimizer: Literal["adam", "rows"] = "adam"  # "rows": lazy, one second moment per latent
    betas: tuple[float, float] = (0.9, 0.999)  # of Adam's moments
    eps: float = Field(6.25e-10, gt=0)
    clip: float | None = Field(None, gt=0)  # largest norm of all gradients together
    ema: float | None = Field(None, gt=0, lt=1)  # average the weights; the average is the result

    dead: Annotated[Dead | None, BeforeValidator(parse_dead)] = None  # the family's usual one
    dead_after: int | None = Field(None, ge=0)  # rows: a hundredth of the run, 10 million at most
    centre: Literal["median", "mean", "zero"] = "median"  # start of b_dec
    inputs: Literal["scale", "whiten", "none"] = "scale"  # folded into the weights at the end
    precision: Literal["float32", "bfloat16", "screened"] = "float32"  # screened is exact too
    seed: int = 0

    patience: int | None = Field(None, ge=1)  # stop after so many validations without a gain
    validate_every: int = Field(100, ge=1)  # steps
    series: int = Field(0, ge=0)  # checkpoints kept per tenfold of the steps

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
        """At least eight batches, or every latent that missed one would count."""
        if self.dead_after is not None:
            return self.dead_after
        return min(10_000_000, max(8, self.steps // 100) * self.batch_size)

    def factor(self, step: int) -> float:
        """The learning rate's warm-up and decay."""
        up = (step + 1) / max(1.0, self.warmup * self.steps)
        down = min(1.0, (self.steps - step) / max(1.0, self.decay * self.steps))
        if self.schedule == "cosine":
            down = (1 - math.cos(math.pi * down)) / 2
        return min(1.0, up, down)

    def penalty_factor(self, step: int) -> float:
        """How much of the sparsity penalty counts."""
        return min(1.0, (step + 1) / max(1.0, self.sparsity_warmup * self.steps))

    def kept(self, step: int) -> bool:
        """Whether a checkpoint of the series belongs after this many steps: evenly on a log scale.

        The last step is not among them: the finished SAE is.
        """
        if not self.series or not 0 < step < self.steps:
            return False
        return any(step == round(10 ** (i / self.series)) for i in range(self.series * 10))
