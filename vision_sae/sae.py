"""The sparse autoencoder.

    z = (x - b_dec) W_enc' + b_enc,  f = sparsity(z),  x_hat = f W_dec + b_dec

Shape key: n rows, d input width, s latents, k active latents. Weights have one row per latent.
"""

from typing import Annotated, Literal, NamedTuple

import torch
from jaxtyping import Float
from pydantic import Field, ValidationError, model_validator
from torch import Tensor, nn

from vision_sae import kernels, sparsity
from vision_sae.codes import Codes
from vision_sae.config import Frozen, plain_error
from vision_sae.errors import ConfigError, DataError
from vision_sae.provenance import Provenance


class TopK(Frozen):
    """The k largest of each row."""

    kind: Literal["topk"] = "topk"
    k: int = Field(ge=1)


class BatchTopK(Frozen):
    """The k*n largest of each training batch; a stored threshold at inference."""

    kind: Literal["batchtopk"] = "batchtopk"
    k: int = Field(ge=1)


Sparsity = Annotated[TopK | BatchTopK, Field(discriminator="kind")]
FAMILIES: dict[str, type[TopK] | type[BatchTopK]] = {"topk": TopK, "batchtopk": BatchTopK}


class SAEConfig(Frozen):
    """What an SAE is: input width `d`, latents `s`, and how codes are made sparse."""

    d: int = Field(ge=1)
    s: int = Field(ge=1)
    sparsity: Sparsity

    @model_validator(mode="after")
    def _k_fits(self) -> "SAEConfig":
        if self.sparsity.k > self.s:
            raise ValueError(
                f"k must lie in 1..{self.s} (the number of latents); got {self.sparsity.k}"
            )
        return self

    @classmethod
    def of(cls, d: int, s: int, family: str = "topk", k: int = 16) -> "SAEConfig":
        """A config from plain values. Raises ConfigError that says what is allowed."""
        if family not in FAMILIES:
            raise ConfigError(f"no family {family!r}; there are: {', '.join(FAMILIES)}")
        try:
            return cls(d=d, s=s, sparsity=FAMILIES[family](k=k))
        except ValidationError as error:
            raise ConfigError(plain_error(error)) from None


class Output(NamedTuple):
    """What a forward pass gives: the codes and the reconstruction."""

    codes: Codes
    x_hat: Float[Tensor, "n d"]


class SAE(nn.Module):
    """A sparse autoencoder with unit-norm atoms and the encoder started as their transpose.

    `threshold` is used by BatchTopK at inference: the calibrated one, or the running average
    `threshold_ema` until there is one. Either is NaN while unset. `scale` records the factor that
    inputs had in training; it is folded into the weights already. `provenance` says which model,
    site and images it was trained on, where that is known.
    """

    threshold: Tensor
    threshold_ema: Tensor
    scale: Tensor
    provenance: Provenance | None = None

    def __init__(self, config: SAEConfig, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        generator = torch.Generator().manual_seed(seed)
        atoms = torch.randn(config.s, config.d, generator=generator)
        atoms /= atoms.norm(dim=1, keepdim=True)
        self.W_dec = nn.Parameter(atoms)  # [s d]
        self.W_enc = nn.Parameter(atoms.clone())  # [s d]
        self.b_enc = nn.Parameter(torch.zeros(config.s))
        self.b_dec = nn.Parameter(torch.zeros(config.d))
        self.register_buffer("threshold", torch.tensor(torch.nan))
        self.register_buffer("threshold_ema", torch.tensor(torch.nan))
        self.register_buffer("scale", torch.tensor(1.0, dtype=torch.float64))

    def pre_activations(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n s"]:
        """z, dense. Raises DataError when the width is another one."""
        self._check_width(x)
        pre = torch.addmm(self.b_enc, self._centred(x), self.W_enc.T)
        return pre.view(*x.shape[:-1], self.config.s)

    def encode(self, x: Float[Tensor, "*n d"]) -> Codes:
        """Sparse codes; leading axes are flattened to rows. Raises DataError on another width."""
        self._check_width(x)
        centred = self._centred(x)
        with torch.no_grad():
            codes = self._sparsify(torch.addmm(self.b_enc, centred, self.W_enc.T))
        if not torch.is_grad_enabled():
            return codes
        return kernels.attach(centred, self.W_enc, self.b_enc, codes)

    def decode(self, codes: Codes) -> Float[Tensor, "n d"]:
        return kernels.decode(codes, self.W_dec) + self.b_dec

    def forward(self, x: Float[Tensor, "*n d"]) -> Output:
        codes = self.encode(x)
        return Output(codes, self.decode(codes))

    def _centred(self, x: Tensor) -> Tensor:
        return x.reshape(-1, self.config.d) - self.b_dec

    def _sparsify(self, pre: Tensor) -> Codes:
        if self.config.sparsity.kind == "topk":
            return sparsity.topk(pre, self.config.sparsity.k)
        if self.training:
            return sparsity.batch_topk(pre, self.config.sparsity.k)
        return sparsity.threshold(pre, self.inference_threshold())

    def inference_threshold(self) -> Float[Tensor, ""]:
        """The calibrated threshold, else the running one. Raises ConfigError without either."""
        for value in (self.threshold, self.threshold_ema):
            if not value.isnan():
                return value
        raise ConfigError(
            "this BatchTopK SAE has no inference threshold yet: train it, or set one with calibrate"
        )

    def _check_width(self, x: Tensor) -> None:
        if x.ndim == 0 or x.shape[-1] != self.config.d:
            raise DataError(
                f"this SAE reads vectors of width {self.config.d}; got shape {tuple(x.shape)}"
            )

    @torch.no_grad()
    def normalise_decoder(self) -> None:
        self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True).clamp(min=1e-12))

    @torch.no_grad()
    def remove_parallel_gradient(self) -> None:
        """Take the part along each atom off its gradient, so that the step keeps its norm."""
        grad = self.W_dec.grad
        if grad is not None:
            grad.addcmul_((grad * self.W_dec).sum(1, keepdim=True), self.W_dec, value=-1)

    @torch.no_grad()
    def fold_scale(self, scale: float) -> None:
        """Turn an SAE of scale * x into one of x.

        TopK, ReLU and thresholds commute with positive factors, so only the biases and thresholds
        are divided; atoms keep unit norm and codes come out in the data's units.
        """
        for value in (self.b_enc, self.b_dec, self.threshold, self.threshold_ema):
            value.div_(scale)
        self.scale.mul_(scale)
