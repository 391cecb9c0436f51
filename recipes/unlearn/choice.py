"""How latents are chosen and what is done to them: settings, the best ones, the published ones."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, get_args

from vision_sae.errors import ConfigError, UnknownName
from vision_sae.recipes.unlearn.plan import Half, Mode, Reads, one_of
from vision_sae.recipes.unlearn.scores import SCORES


@dataclass(frozen=True)
class Choice:
    """How latents are chosen and what is done to them.

    `count` latents by `score` (a name in `scores.SCORES`), or those above the
    `percentile` of all scores; over the mean of the timesteps, or at each (`per_step`). The gate of
    `where="image"` reads `detectors` latents. `towards` is another concept ("style:plain", or
    "nearest" of the same factor) that the scores compare with and whose means "replace" puts in the
    place; without it all others. "transport" needs it, and learns a map from codes or from
    activations (`reads`), in `rounds` (see transport.py). `mode`, `where`, `multiplier`, `half`,
    `window`: see SiteEdit. Raises ConfigError, UnknownName.
    """

    score: str = "shift"
    count: int = 64
    percentile: float | None = None
    per_step: bool = False
    detectors: int = 48
    towards: str | None = None
    mode: str = "replace"
    where: str = "image"
    strength: float = 1.0
    multiplier: float = -1.0
    half: str = "cond"
    window: tuple[int, int] = (0, 10**6)
    saeuron_sign: bool = False
    reads: str = "codes"
    rounds: int = 2

    def __post_init__(self) -> None:
        if self.score not in SCORES:
            raise UnknownName("score", self.score, SCORES)
        for what, allowed in (("mode", Mode), ("half", Half), ("reads", Reads)):
            one_of(what, getattr(self, what), get_args(allowed))
        if min(self.count, self.detectors, self.rounds) < 1:
            raise ConfigError(
                "count, detectors and rounds must be at least 1; got "
                f"{self.count}, {self.detectors}, {self.rounds}"
            )
        if self.percentile is not None and not 0 <= self.percentile < 100:
            raise ConfigError(f"percentile must be from 0 to below 100; got {self.percentile}")
        if self.mode == "transport" and self.towards is None:
            raise ConfigError(
                "mode 'transport' leads to another concept: give towards=, or towards='nearest'"
            )


# what did best on emoji-diffusion's validation pictures (docs/unlearn.md)
BEST = Choice(mode="transport", towards="nearest", count=200, detectors=96, strength=1.1)
# the published code: both halves, one latent above the 99.999th percentile at each step, -1 * mean
SAEURON = Choice(
    score="saeuron", percentile=99.999, per_step=True, mode="multiple", where="threshold",
    half="both", saeuron_sign=True,
)  # fmt: skip
COMPAT = {"saeuron": SAEURON}


def choice_of(
    settings: Mapping[str, Any], compat: str | None = None, base: Choice = BEST
) -> Choice:
    """Settings over the published ones of `compat`, or over `base` where the mode is its own.

    Raises UnknownName for what `compat` does not know, and what Choice raises.
    """
    if compat is not None and compat not in COMPAT:
        raise UnknownName("compat", compat, COMPAT)
    usual = COMPAT[compat] if compat else base
    if settings.get("mode", usual.mode) != usual.mode:
        usual = Choice()
    return replace(usual, **settings)
