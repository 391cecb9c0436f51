"""Concept magnitude editing: a latent set to a value, everything else as it was."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from vision_sae.errors import ConfigError
from vision_sae.model.hooks import inference
from vision_sae.sae import SAE


def turned(sae: SAE, x: Float[Tensor, "n d"], values: Mapping[int, float]) -> Float[Tensor, "n d"]:
    """x + sum over j of (values_j - f_j(x)) W_dec_j, in the units of x.

    What the SAE does not explain stays (MSAE, Zaigrajew et al. 2025, edits the reconstruction and
    loses it); rows that have the values already stay bit for bit. Raises ConfigError for latents
    that are not there and for transcoders, DataError for another width.
    """
    if sae.config.d_out is not None:
        raise ConfigError("a transcoder writes another site than it reads, so it edits no rows")
    if wrong := [j for j in values if not 0 <= j < sae.config.s]:
        raise ConfigError(f"latents {wrong} are not among the {sae.config.s} of this SAE")
    with inference(sae):
        codes = sae.encode(x)
        rows, undo = sae.treated(x)
        change = torch.zeros_like(rows)
        for latent, value in values.items():
            entry = (codes.indices == latent).nonzero()[:, 0]
            own = rows.new_zeros(len(rows)).index_put((codes.rows[entry],), codes.values[entry])
            change += (value - own)[:, None] * sae.W_dec[latent]
        return x + (undo(rows + change) - undo(rows))
