"""Where in the image a class token's latent comes from: patches' shares through one block."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vision_sae.model.adapter import Adapter, on_device
from vision_sae.model.hooks import find_module, tensor_of
from vision_sae.model.sites import Site, to_tokens
from vision_sae.sae import SAE

Call = tuple[tuple[Any, ...], dict[str, Any]]  # what a module was called with


class BlockInputs:
    """What the module at a site was called with, for one prepared batch."""

    def __init__(self, adapter: Adapter, site: Site, batch: Float[Tensor, "b c h w"]) -> None:
        self.module, self.site = find_module(adapter.model, site.name), site
        calls: list[Call] = []

        def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls.append((args, kwargs))

        handle = self.module.register_forward_pre_hook(keep, with_kwargs=True)
        try:
            with torch.no_grad():
                adapter.run(on_device(adapter, batch))
        finally:
            handle.remove()
        (self.tokens, *self.rest), self.kwargs = calls[-1]

    def contributions(
        self, sae: SAE, rows: Int[Tensor, " p"], latents: Int[Tensor, " p"]
    ) -> Float[Tensor, "p t"]:
        """Gradient x token, summed over the width: how each input token moves a pair's latent.

        A pair is an image of the batch and a latent; the latent is read off the class token that
        the block gives. The contributions add up to the change of the latent's pre-activation per
        relative change of all input tokens.
        """
        x = self.tokens[rows].detach().clone().requires_grad_()
        output = tensor_of(self.module(x, *self.rest, **self.kwargs), self.site.name)
        cls = to_tokens(output, self.site)[:, 0].float()
        pre = ((cls - sae.b_dec) * sae.W_enc[latents]).sum(1)
        (grad,) = torch.autograd.grad(pre.sum(), x)
        shares: Tensor = (grad * x).sum(2).detach()
        return shares
