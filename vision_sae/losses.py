"""Training losses, as plain functions of one forward pass."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vision_sae import nest, sharded
from vision_sae.families.base import DENSE_FROM, Encoded
from vision_sae.levels import Levels
from vision_sae.parallel import ALONE, Group
from vision_sae.sae import SAE
from vision_sae.sparse import kernels, select
from vision_sae.sparse.codes import AnyCodes, Codes, DenseCodes
from vision_sae.sparse.select import Product


@dataclass
class Pass:
    """One forward pass of a training step: what every loss may look at.

    `rows` and `spread` (sum of |target - mean|^2) are of the whole batch over all processes and
    pieces, so that the losses of the parts of a batch add up to the loss of the batch.
    """

    sae: SAE
    x: Float[Tensor, "n d"]
    target: Float[Tensor, "n o"]
    codes: AnyCodes
    z: Tensor
    x_hat: Float[Tensor, "n o"]
    dead: Bool[Tensor, " s"]
    rows: int
    spread: Float[Tensor, ""]
    step: int = 0
    progress: float = 1.0
    seed: int = 0
    state: dict[str, Tensor] = field(default_factory=dict)
    group: Group = ALONE

    @cached_property
    def residual(self) -> Float[Tensor, "n o"]:
        return self.target - self.x_hat

    def weighted(self, codes: AnyCodes) -> Tensor:
        """Values times the norms of their atoms, where those are free."""
        if self.sae.config.atoms == "unit":
            return codes.values
        return codes.values * codes.per_entry(self.sae.W_dec.norm(dim=1))

    def whole_batch(self, part: Tensor) -> Tensor:
        """A sum over this process's rows and latents as the sum over all, with its own gradient."""
        return part + (self.group.sum(part.detach().clone()) - part.detach())

    def share(self) -> float:
        """How much of the batch this piece of it is, over all processes."""
        return self.group.rows.total(len(self.x)) / self.rows


def forward(
    sae: SAE,
    x: Float[Tensor, "n d"],
    target: Float[Tensor, "n o"] | None = None,
    dead: Bool[Tensor, " s"] | None = None,
    *,
    k: int | None = None,
) -> Pass:
    """A pass over rows that are a whole batch; a target is for transcoders only."""
    codes, z = sae.encoded(x, k=k)
    x_hat = sae.decode(codes) + sae.skipped(x)
    goal = sae.treated(x).rows if target is None else target
    none = torch.zeros(sae.config.s, dtype=torch.bool, device=x.device)
    dead = none if dead is None else dead
    return Pass(sae, x, goal, codes, z, x_hat, dead, len(x), spread(goal))


def spread(x: Float[Tensor, "n d"], group: Group = ALONE) -> Float[Tensor, ""]:
    """sum |x - mean|^2 over the rows of all processes, at least the smallest positive number."""
    mean = x.mean(0)
    if group.size > 1:
        n = group.sum(torch.tensor(float(len(x)), device=x.device))
        mean = group.sum(x.sum(0)) / n
    total = group.sum(squared(x - mean))
    return total.clamp(min=torch.finfo(x.dtype).tiny)


def squared(x: Float[Tensor, "..."]) -> Float[Tensor, ""]:
    """The sum of squares, without a tensor of squares."""
    total: Tensor = _Squared.apply(x)
    return total


class _Squared(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.dot(x.reshape(-1), x.reshape(-1))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        x: Tensor = ctx.saved_tensors[0]
        return x * (2 * grad)


def fvu(x: Float[Tensor, "n d"], x_hat: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """Fraction of variance unexplained within the batch: sum |x - x_hat|^2 / sum |x - mean|^2."""
    return squared(x - x_hat) / spread(x)


def reconstruction(p: Pass) -> Float[Tensor, ""]:
    """The error of the reconstruction, or of all nested ones, in the family's usual units.

    "fvu": over the batch's variance. "mse": summed over dimensions, mean over rows.
    """
    unit = p.spread if p.sae.config.sparsity.loss == "fvu" else float(p.rows)
    if p.sae.config.nest is None:
        return p.group.latents.part_of(squared(p.residual) / unit)
    return _nested(p, p.sae.config.nest) / unit


def _nested(p: Pass, settings: nest.AnyNest) -> Float[Tensor, ""]:
    """The squared errors of all nested reconstructions, weighted, over all rows."""
    seed = p.seed * 7919 + p.step
    if isinstance(settings, nest.Ks) and p.sae.levels is not None:
        return _by_levels(p, settings, p.sae.levels, seed)
    goal = p.target - p.sae.b_dec - p.sae.skipped(p.x)
    prefix = settings.drawn(p.sae.config.s, seed)
    whole = _nested_error(p, settings, p.codes, goal, seed)
    if prefix is None:
        return whole
    if p.sae.config.sparsity.competes:
        of_prefix = p.sae.encoded(p.x, prefix=prefix).codes
    else:
        of_prefix = nest.first(p.codes, prefix)
    share = settings.prefix_weight  # type: ignore[union-attr]
    return whole * (1 - share) + _nested_error(p, settings, of_prefix, goal, seed) * share


def _by_levels(p: Pass, settings: nest.Ks, levels: Levels, seed: int) -> Float[Tensor, ""]:
    """The same where each k reads latents in its own way; of a prefix, one k in each step."""
    bare, found = p.target - p.sae.skipped(p.x), Encoded(p.codes, p.z)
    smaller = Codes.joined([levels.codes(found, k) for k in levels.ks])  # decoded in one go
    rest = bare.repeat(len(levels.ks), 1) - p.sae.decode(smaller)
    errors = torch.stack([squared(left) for left in (*rest.chunk(len(levels.ks)), p.residual)])
    weights = settings.weights(len(errors), p.group.rows.sum(errors.detach().clone())).to(errors)
    whole: Tensor = errors @ weights
    if not isinstance(settings, nest.Both):
        return whole
    prefix, level = settings.drawn(p.sae.config.s, seed), settings.drawn_level(seed)
    share = settings.prefix_weight
    if level is None:
        return whole * (1 - share)
    codes = p.sae.level(p.x, sorted(set(settings.ks))[level], prefix)
    times = 2 * len(errors) * weights[level]  # it stands for all ks, and for the step without
    return whole * (1 - share) + squared(bare - p.sae.decode(codes)) * times * share


def _nested_error(
    p: Pass, settings: nest.AnyNest, codes: AnyCodes, goal: Tensor, seed: int
) -> Float[Tensor, ""]:
    latents = p.group.latents
    parts = nest.parts(settings, codes, p.sae.W_dec, seed, latents)
    return latents.part_of(nest.error(parts, goal, settings.weights(parts.shape[1])))


def multi_topk(p: Pass) -> Float[Tensor, ""] | None:
    """An eighth of the error with several times k latents (Gao et al. 2024, section 4.2)."""
    family = p.sae.config.sparsity
    times = getattr(family, "multi", None)
    if not times:
        return None
    most = p.sae.config.s * p.group.latents.size
    k = min(times * (family.k_at(p.progress) or family.k), most)  # type: ignore[attr-defined]
    codes = p.sae.encoded(p.x, k=k).codes
    x_hat = p.sae.decode(codes) + p.sae.skipped(p.x)
    return p.group.latents.part_of(squared(p.target - x_hat) / p.spread / 8)


def auxk(p: Pass, k: int, *, form: str = "openai") -> Float[Tensor, ""]:
    """Dead latents predict what the live ones left over, without bias, from the k largest.

    openai (Gao et al. 2024, appendix A.2): rectified pre-activations, error over the residual's
    variance. saelens (6.54): pre-activations as they are, error summed over dimensions, times
    min(dead / k, 1). The residual is detached; 0 when no latent is dead.
    """
    ids, latents = p.dead.nonzero()[:, 0], p.group.latents
    dead = latents.total(len(ids))
    if not dead:
        return p.target.new_zeros(())
    guess = latents.joined(_from_dead(p, ids, min(k, dead), rectify=form == "openai"))
    residual = p.residual.detach()
    error = latents.part_of(squared(residual - guess))
    if form == "openai":
        return p.share() * error / spread(residual, p.group.rows)  # a piece stands for the batch
    return error / p.rows * min(dead / k, 1.0)


def _from_dead(p: Pass, ids: Tensor, k: int, *, rectify: bool) -> Float[Tensor, "n o"]:
    """What the k largest pre-activations of dead latents (of all processes) decode to, no bias."""
    few = min(k, len(ids))
    if few >= DENSE_FROM * len(ids):
        z = dead_pre_activations(p, ids)
        values, chosen = z.topk(few, dim=1, sorted=False)
        mask = torch.zeros_like(z).scatter_(1, chosen, 1.0)
        if p.group.latents.size > 1:
            mask.scatter_(1, chosen, p.group.latents.best(values.detach(), k).to(z.dtype))
        codes: AnyCodes = DenseCodes(z * mask)
    else:
        weight, bias = p.sae.W_enc[ids], p.sae.b_enc[ids]
        x = p.sae.read(p.x)
        with torch.no_grad():
            product = Product.of(x, weight, bias)
            known, latents = select.top(product, few)
            support, known = sharded.kept(product, known, latents, k, p.group.latents)
        codes = Codes(kernels.project(x, weight, bias, support, known), support)
    codes = codes.map(torch.relu) if rectify else codes
    guess: Tensor = kernels.decode(codes, p.sae.W_dec[ids])
    return guess


def dead_pre_activations(p: Pass, ids: Tensor) -> Float[Tensor, "n dead"]:
    """z of some latents, dense and differentiable."""
    return (p.sae.read(p.x) @ p.sae.W_enc[ids].T + p.sae.b_enc[ids]).to(p.x.dtype)


def ghost(p: Pass) -> Float[Tensor, ""]:
    """Ghost gradients (Jermyn & Templeton 2024): exp of dead pre-activations, scaled to half the
    residual, predict it; the loss is scaled to the size of the main one."""
    ids, latents = p.dead.nonzero()[:, 0], p.group.latents
    if not latents.total(len(ids)):
        return p.target.new_zeros(())
    residual = p.residual.detach()
    guess = latents.joined(torch.exp(dead_pre_activations(p, ids)) @ p.sae.W_dec[ids])
    scale = residual.norm(dim=1) / (2 * guess.norm(dim=1)).clamp(min=1e-12)
    error = squared(guess * scale.detach()[:, None] - residual)
    main, size = p.group.rows.sum(torch.stack([squared(residual), error.detach()]))
    return latents.part_of(error / p.rows * (main / size.clamp(min=1e-12)))


def pre_activation(p: Pass, *, every: bool = False) -> Float[Tensor, ""]:
    """sum relu(theta - z) n over dead latents, or over `every` latent (Anthropic, January 2025).

    theta is the family's floor: 0 where it has no thresholds.
    """
    ids = torch.arange(p.sae.config.s, device=p.x.device) if every else p.dead.nonzero()[:, 0]
    if not len(ids):
        return p.target.new_zeros(())
    theta = p.sae.config.sparsity.floor(p.sae)[ids]
    below: Tensor = (theta - dead_pre_activations(p, ids)).relu()
    weighted: Tensor = below * p.sae.W_dec[ids].norm(dim=1)
    return weighted.sum() / p.rows
