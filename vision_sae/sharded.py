"""Dictionaries over several processes: each holds s / size latents and sees every row.

A process trains an SAE of its own latents. What needs all latents is few: the largest of a row or a
batch are chosen among all (`kept`, select.batch_top), partial reconstructions are added up
(`Group.joined`), and the gradient that reaches b_dec through the encoder too (`sae.b_in`).
On disk and in the end there is one whole SAE, as if one process had trained it.
"""

from itertools import chain
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vision_sae.errors import ConfigError
from vision_sae.nest import Ks
from vision_sae.parallel import Group
from vision_sae.sparse.codes import Support
from vision_sae.sparse.select import Product

if TYPE_CHECKING:
    from vision_sae.sae import SAE, SAEConfig


def check(config: "SAEConfig", group: Group) -> None:
    """Raises ConfigError for what latents on several processes cannot do."""
    if group.latents.size == 1:
        return
    if config.s % group.size:
        raise ConfigError(
            f"the number of latents must be a multiple of the {group.size} processes that share "
            f"them; got {config.s}"
        )
    groups = getattr(config.sparsity, "k", 0) if config.sparsity.kind == "groupmax" else 0
    if groups % group.size:
        raise ConfigError(
            f"a process holds whole groups of latents: k must be a multiple of the {group.size} "
            f"processes that share them; got {groups}"
        )
    refused = {
        f"the {config.sparsity.kind} family": not config.sparsity.spreads,
        f"nest={config.nest.kind!r}" if config.nest else "": isinstance(config.nest, Ks),
        "an archetypal dictionary": config.dictionary is not None,
    }
    named = [what for what, is_so in refused.items() if is_so]
    if named:
        raise ConfigError(
            f"{' and '.join(named)} cannot have its latents on several processes; share rows "
            "instead (parallel='rows')"
        )


def spread_out(sae: "SAE", group: Group) -> "SAE":
    """The SAE that this process trains: the same one, or one of its share of the latents."""
    if group.size == 1:
        return sae
    group.same(sae.state_dict().values())
    if group.kind == "rows":
        return sae.to(group.device)
    config = sae.config.model_copy(update={"s": sae.config.s // group.size})
    own = type(sae)(config)
    whole, names = sae.state_dict(), latent_names(sae, own)
    for name, tensor in chain(own.named_parameters(), own.named_buffers()):
        mine = cut(whole[name], group) if name in names else whole[name].clone()
        tensor.data = mine.to(group.device)
    own.b_in = own.b_dec.detach().requires_grad_()  # shares its memory
    return own


def latent_names(whole: "SAE", own: "SAE") -> frozenset[str]:
    """The tensors that have one row per latent: those whose shape the share changes."""
    shapes = {name: tensor.shape for name, tensor in own.state_dict().items()}
    return frozenset(n for n, tensor in whole.state_dict().items() if tensor.shape != shapes[n])


def cut(whole: Float[Tensor, "s *rest"], group: Group) -> Float[Tensor, "own *rest"]:
    """This process's rows."""
    return whole.chunk(group.size)[group.rank].clone()


def gathered(own: Float[Tensor, "own *rest"], group: Group) -> Float[Tensor, "s *rest"]:
    """All processes' rows, in main memory: a device may not have room for them."""
    return group.gather(own.detach().cpu())


@torch.no_grad()
def merged(own: "SAE", like: "SAE", group: Group) -> "SAE":
    """The whole SAE, in place of `like`, of which `own` are this process's latents."""
    from vision_sae.fold import untie

    if like.config.tied and not own.config.tied:
        untie(like)
    names, target = latent_names(like, own), like.state_dict()
    for name, tensor in own.state_dict().items():
        target[name].copy_(gathered(tensor, group) if name in names else tensor)
    like.config = own.config.model_copy(update={"s": like.config.s})
    return like.eval()


def kept(
    product: Product,
    z: Float[Tensor, "n c"],
    latents: Int[Tensor, "n c"],
    k: int,
    group: Group,
    *,
    magnitude: bool = False,
) -> tuple[Support, Float[Tensor, " e"]]:
    """Of a process's k largest of each row, those that are among the k largest of all processes."""
    n, width = product.shape
    if group.size == 1:
        return Support.even(latents, width), z.flatten()
    scores = product.scores(z, latents)
    rows, place = group.best(scores.abs() if magnitude else scores, k).nonzero().unbind(1)
    return Support.of_rows(rows, latents[rows, place], n, width), z[rows, place]


def share_gradients(sae: "SAE", group: Group) -> None:
    """The gradients of the whole batch through the whole dictionary."""
    if group.size == 1:
        return
    if group.kind == "rows":
        for parameter in sae.parameters():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        group.sum_all(p.grad for p in sae.parameters() if p.grad is not None)
    elif sae.b_in is not None:
        through = torch.zeros_like(sae.b_in) if sae.b_in.grad is None else sae.b_in.grad
        group.sum(through)
        sae.b_dec.grad = through if sae.b_dec.grad is None else sae.b_dec.grad + through
        sae.b_in.grad = None
