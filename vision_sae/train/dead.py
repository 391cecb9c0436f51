"""What is done about latents that no longer fire, behind one interface.

A treatment adds a loss to a step (`loss`), or changes weights after it (`after`), or neither.
"""

from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from vision_sae import losses
from vision_sae.config import Frozen
from vision_sae.losses import Pass

if TYPE_CHECKING:
    from vision_sae.train.trainer import Trainer


class Treatment(Frozen):
    """Does nothing; the base of the others."""

    def loss(self, p: Pass) -> Float[Tensor, ""] | None:
        return None

    def after(self, trainer: "Trainer", p: Pass) -> None:
        """Once per step, after the weights have moved."""


class Nothing(Treatment):
    kind: Literal["none"] = "none"


class AuxK(Treatment):
    """Dead latents predict the residual (Gao et al. 2024; form="saelens" as in SAELens)."""

    kind: Literal["auxk"] = "auxk"
    weight: float = Field(1 / 32, ge=0)
    k: int | None = Field(None, ge=1)  # half the output width
    form: Literal["openai", "saelens"] = "openai"

    def loss(self, p: Pass) -> Float[Tensor, ""] | None:
        k = self.k or max(1, p.sae.config.width_out // 2)
        return self.weight * losses.auxk(p, k, form=self.form)


class Ghost(Treatment):
    """Ghost gradients (Jermyn & Templeton 2024)."""

    kind: Literal["ghost"] = "ghost"
    weight: float = Field(1.0, ge=0)

    def loss(self, p: Pass) -> Float[Tensor, ""] | None:
        return self.weight * losses.ghost(p)


class PreAct(Treatment):
    """Dead latents are pulled back over their thresholds; `every` latent if asked (Anthropic)."""

    kind: Literal["preact"] = "preact"
    weight: float = Field(3e-6, ge=0)
    every: bool = False

    def loss(self, p: Pass) -> Float[Tensor, ""] | None:
        return self.weight * losses.pre_activation(p, every=self.every)


class Resample(Treatment):
    """Dead latents start again as badly reconstructed rows (Bricken et al. 2023, "Towards
    Monosemanticity"): drawn by squared loss, encoder at `encoder_norm` of the living's mean norm,
    moments forgotten. At `times` equally spaced points of the first `until` of a training.
    """

    kind: Literal["resample"] = "resample"
    times: int = Field(4, ge=1)
    until: float = Field(0.7, gt=0, le=1)
    encoder_norm: float = Field(0.2, gt=0)

    def due(self, step: int, steps: int) -> bool:
        """Whether latents are resampled after this step."""
        points = {round(steps * self.until * i / self.times) for i in range(1, self.times + 1)}
        return step + 1 in points

    def after(self, trainer: "Trainer", p: Pass) -> None:
        if self.due(p.step, trainer.config.steps):
            resample(trainer, p, self.encoder_norm)


Dead = Annotated[Nothing | AuxK | Ghost | PreAct | Resample, Field(discriminator="kind")]


def parse_dead(value: Any) -> Any:
    """A treatment by its name alone has its usual settings."""
    return {"kind": value} if isinstance(value, str) else value


@torch.no_grad()
def resample(trainer: "Trainer", p: Pass, encoder_norm: float) -> Bool[Tensor, " s"]:
    """Start dead latents again, as many as there are rows to start from; returns which."""
    ids = p.dead.nonzero()[:, 0]
    error = p.residual.square().sum(1)
    ids = ids[: int((error > 0).sum())]
    changed = torch.zeros_like(p.dead)
    if not len(ids):
        return changed
    generator = torch.Generator().manual_seed(p.seed * 7919 + p.step)
    drawn = torch.multinomial(error.double().cpu().square(), len(ids), generator=generator)
    _restart(trainer, p, ids, drawn.to(ids.device), encoder_norm)
    trainer.since_fired[ids] = 0
    changed[ids] = True
    return changed


def _restart(trainer: "Trainer", p: Pass, ids: Tensor, drawn: Tensor, encoder_norm: float) -> None:
    sae = trainer.sae
    alive = ~p.dead
    length = sae.W_enc[alive].norm(dim=1).mean() if bool(alive.any()) else torch.tensor(1.0)
    inputs = torch.nn.functional.normalize(sae.read(p.x)[drawn], dim=1)
    sae.W_enc[ids] = inputs * length * encoder_norm
    if sae.W_dec is not sae.W_enc:
        sae.W_dec[ids] = torch.nn.functional.normalize(p.residual[drawn], dim=1)
    sae.b_enc[ids] = 0
    for parameter in (sae.W_enc, sae.W_dec, sae.b_enc):
        trainer.forget_moments(parameter, ids)


TREATMENTS: dict[str, type[Treatment]] = {
    "none": Nothing, "auxk": AuxK, "ghost": Ghost, "preact": PreAct, "resample": Resample,
}  # fmt: skip
