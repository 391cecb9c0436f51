"""What is done about latents that no longer fire, behind one interface.

A treatment adds a loss to a step (`loss`), or changes weights after it (`after`), or neither.
"""

from itertools import accumulate
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from vision_sae import losses
from vision_sae.config import Frozen
from vision_sae.losses import Pass
from vision_sae.sae import SAE

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
    """Start dead latents again, as many as there are rows to start from; returns which.

    Rows are drawn alike on all processes from all of their rows.
    """
    ids, latents = p.dead.nonzero()[:, 0], p.group.latents
    dead = latents.gather(torch.tensor([len(ids)])).tolist()  # on each process
    error = p.group.rows.in_order(p.residual.square().sum(1))
    count = min(sum(dead), int((error > 0).sum()))
    changed = torch.zeros_like(p.dead)
    if not count:
        return changed
    generator = torch.Generator().manual_seed(p.seed * 7919 + p.step)
    drawn = torch.multinomial(error.double().cpu().square(), count, generator=generator)
    mine = drawn.split(_shares(dead, count))[latents.rank].to(ids.device)
    ids = ids[: len(mine)]
    _restart(trainer, p, ids, mine, encoder_norm)
    trainer.since_fired[ids] = 0
    changed[ids] = True
    return changed


def _shares(dead: list[int], count: int) -> list[int]:
    """How many of the `count` rows go to each process's dead latents: the first ones first."""
    before = accumulate(dead, initial=0)
    return [min(n, max(0, count - b)) for n, b in zip(dead, before, strict=False)]


def _restart(trainer: "Trainer", p: Pass, ids: Tensor, drawn: Tensor, encoder_norm: float) -> None:
    sae, rows = trainer.sae, p.group.rows
    inputs = torch.nn.functional.normalize(rows.pick(sae.read(p.x), drawn), dim=1)
    unit = sae.config.tied and sae.config.atoms == "unit"
    sae.W_enc[ids] = inputs if unit else inputs * _living_norm(p) * encoder_norm
    atoms = torch.nn.functional.normalize(rows.pick(p.residual, drawn), dim=1)
    if sae.config.dictionary:  # W_dec is computed: writing to it would change nothing
        moved = restart_archetypes(sae, ids, atoms)
    else:
        moved = [sae.W_dec]
        if not sae.config.tied:
            sae.W_dec[ids] = atoms
    sae.b_enc[ids] = 0
    for parameter in (sae.W_enc, *moved, sae.b_enc):
        trainer.forget_moments(parameter, ids)


def restart_archetypes(sae: SAE, ids: Tensor, directions: Tensor) -> list[Tensor]:
    """Each latent again near the one point whose direction fits best; returns what has changed."""
    shape: Any = sae.parametrizations.W_dec  # type: ignore[union-attr]
    weights, points, relaxation = shape.original, shape[0].C, shape[0].relaxation
    nearest = (directions @ torch.nn.functional.normalize(points, dim=1).T).argmax(1)
    weights[ids] = 0.1 / len(points)
    weights[ids, nearest] = 1.0
    relaxation[ids] = 0
    return [weights, relaxation]


def _living_norm(p: Pass) -> Float[Tensor, ""]:
    """The mean norm of the encoder's rows of living latents; 1 when there is none."""
    norms = p.sae.W_enc[~p.dead].norm(dim=1)
    total, count = p.group.latents.sum(torch.stack([norms.sum(), norms.new_tensor(len(norms))]))
    return torch.where(count > 0, total / count, 1.0)


TREATMENTS: dict[str, type[Treatment]] = {
    "none": Nothing, "auxk": AuxK, "ghost": Ghost, "preact": PreAct, "resample": Resample,
}  # fmt: skip
