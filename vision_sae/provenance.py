"""Where activations came from; the record travels from stores into SAEs."""

from typing import Literal

from vision_sae.config import Frozen, first_difference

Tokens = Literal["cls", "patches", "pooled", "all"]


class Provenance(Frozen):
    """Which model, site, tokens and images some activations came from."""

    model: str
    fingerprint: str  # of the model's weights
    site: str
    tokens: Tokens
    data: str  # what open_data turns into the images again

    def differs(self, other: "Provenance") -> str | None:
        """What makes activations incomparable, in words; None when nothing does."""
        return first_difference(self, other, ("model", "fingerprint", "site", "tokens"))
