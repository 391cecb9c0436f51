"""Where activations came from; the record travels from stores into SAEs."""

from typing import Literal

from vision_sae.config import Frozen, first_difference

Tokens = Literal["cls", "registers", "patches", "pooled", "all"]
Half = Literal["cond", "uncond", "both", "none"]


class Provenance(Frozen):
    """Which model, site, tokens and images some activations came from."""

    model: str
    fingerprint: str  # of the model's weights
    site: str
    tokens: Tokens
    data: str  # what open_data turns into the images again
    timesteps: tuple[int, ...] = ()  # of a denoiser, in the order in which they ran
    half: Half = "none"  # of a batch with guidance
    sampler: str = ""  # of a denoiser: its scheduler and a hash of the settings

    def differs(self, other: "Provenance") -> str | None:
        """What makes activations incomparable, in words; None when nothing does.

        Activations at some of the timesteps go with those at all of them, and those of another
        sampler with these, as an SAE reads timesteps whatever stepped to them.
        """
        names = ("model", "fingerprint", "site", "tokens", "half")
        reason = first_difference(self, other, names)
        mine, theirs = set(self.timesteps), set(other.timesteps)
        if reason or mine <= theirs or (theirs and theirs <= mine):
            return reason
        return f"timesteps {_some(self.timesteps)} against {_some(other.timesteps)}"


def _some(timesteps: tuple[int, ...]) -> str:
    shown = ", ".join(map(str, timesteps[:5])) or "none"
    return f"{shown} ... ({len(timesteps)})" if len(timesteps) > 5 else shown
