"""Interventions: change a site's tokens through an SAE."""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from vision_sae.errors import DataError
from vision_sae.model.sites import Site, from_tokens, to_tokens, token_span
from vision_sae.provenance import Tokens
from vision_sae.sae import SAE

Change = Callable[[Float[Tensor, "n d"]], Float[Tensor, "n d"]]


def reconstruct(sae: SAE) -> Change:
    """x -> x_hat: what is left of the model when it sees only what the SAE explains."""
    return lambda x: sae(x).x_hat


def on_tokens(change: Change, site: Site, which: Tokens) -> Callable[[Tensor], Tensor]:
    """A change of rows as a change of a site's output, on the class token, registers,
    patches or all.

    Rows (float32 or shorter) that `change` gives back as they came stay bit for bit. Raises
    DataError for pooled tokens of a token site, whose mean cannot be put back, and for a class
    token or registers that are not there.
    """
    if which == "pooled" and site.layout != "vector":
        raise DataError(f"pooled tokens of {site.name!r} are a mean, which cannot be put back")
    span = token_span(site, which)

    def changed(output: Tensor) -> Tensor:
        tokens = to_tokens(output, site).clone()
        chosen = tokens[:, span]
        new = change(chosen.reshape(-1, site.width).float())
        tokens[:, span] = new.to(output.dtype).view_as(chosen)
        return from_tokens(tokens, site)

    return changed
