"""Safe latent guidance (SLD, Schramowski et al. 2023, arXiv 2211.05105): away from a text."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vision_sae.adapters.diffusion_inputs import Conditions, conditions, denoiser_of, image_size
from vision_sae.recipes.unlearn.baselines.words import VocabularyWords, Words, named
from vision_sae.recipes.unlearn.calls import arguments, check_can_guide, check_guided
from vision_sae.recipes.unlearn.removal import Draw, Removal

WHAT = "safe latent guidance"


@dataclass(frozen=True)
class SafeGuidance:
    """A third pass of the denoiser reads the concept's words S, and guidance leads away from them.

        e   = e_u + g (e_c - e_u - gamma)                    guided noise (equation 3)
        mu  = min(1, scale |e_c - e_S|) where e_c - e_S < threshold, else 0       (6)
        gamma = mu (e_S - e_u) + momentum * v                                     (4, 7)
        v  <- beta v + (1 - beta) gamma                                           (8)

    gamma is left out of the first `warmup` of the steps (a share; v grows there all the same). The
    paper writes max for the min of (6); its code, and this, have min. The defaults are "SLD-Max",
    whose threshold acts nearly everywhere; "medium" is scale 1000, warmup .2, threshold .01,
    momentum .3, beta .4. Raises ConfigError for a pipeline or a call without guidance.
    """

    scale: float = 5000.0
    warmup: float = 0.0
    threshold: float = 1.0
    momentum: float = 0.5
    beta: float = 0.7
    words: Words = field(default_factory=VocabularyWords)
    name: str = "safe guidance"

    def fit(self, pipe: Any, concepts: Sequence[str]) -> Removal:
        check_can_guide(pipe, WHAT)
        text = named(self.words, concepts)

        @contextmanager
        def removal(pipe: Any) -> Iterator[Draw]:
            denoiser = denoiser_of(pipe)
            state = _Away(self, pipe, conditions(pipe, text, image_size(pipe, None, None)))
            handle = denoiser.register_forward_hook(state, with_kwargs=True)

            def draw(*args: Any, **given: Any) -> Any:
                check_guided(pipe, arguments(pipe, args, given), WHAT)
                state.begin()
                return pipe(*args, **given)

            try:
                yield draw
            finally:
                handle.remove()

        return removal


class _Away:
    """Takes gamma off the conditional half of each call, so that the pipeline guides by (3)."""

    def __init__(self, settings: SafeGuidance, pipe: Any, concept: Conditions) -> None:
        self.settings, self.pipe, self.concept = settings, pipe, concept
        self.busy = False
        self.begin()

    def begin(self) -> None:
        """Forget the last trajectory."""
        self.call, self.v = 0, torch.zeros(())

    @torch.no_grad()
    def __call__(self, denoiser: Any, args: Any, kwargs: Any, output: Any) -> Any:
        if self.busy:
            return None
        noise = output[0]
        uncond, cond = noise.chunk(2)
        away = self._gamma(uncond, cond, self._third(denoiser, args, kwargs, len(noise)))
        late = self.call >= self.settings.warmup * len(self.pipe.scheduler.timesteps)
        self.call += 1
        if not late:
            return None
        changed = torch.cat([uncond, cond - away])
        return (changed, *output[1:]) if isinstance(output, tuple) else type(output)(changed)

    def _gamma(self, uncond: Tensor, cond: Tensor, concept: Tensor) -> Tensor:
        s = self.settings
        mu = ((cond - concept).abs() * s.scale).clamp(max=1.0)
        mu = mu.where(cond - concept < s.threshold, 0.0)
        gamma: Tensor = mu * (concept - uncond) + s.momentum * self.v.to(mu)
        self.v = s.beta * self.v.to(mu) + (1 - s.beta) * gamma
        return gamma

    def _third(self, denoiser: Any, args: Any, kwargs: Any, rows: int) -> Tensor:
        """The conditional half's call again, with the concept's words."""
        half = _half({str(i): arg for i, arg in enumerate(args)} | kwargs, rows, self.concept)
        positional = [half.pop(str(i)) for i in range(len(args))]
        self.busy = True
        try:
            noise: Tensor = denoiser(*positional, **half)[0]
        finally:
            self.busy = False
        return noise


def _half(given: dict[str, Any], rows: int, concept: Conditions) -> dict[str, Any]:
    """The second half of every tensor that has a row per image; the concept's own where it has."""
    found: dict[str, Any] = {}
    for name, value in given.items():
        if isinstance(value, dict):
            found[name] = _half(value, rows, concept)
        elif name in concept and isinstance(value, Tensor) and name not in KEPT:
            own = concept[name].to(value)
            found[name] = own.expand(rows // 2, *own.shape[1:])
        elif isinstance(value, Tensor) and value.ndim and len(value) == rows:
            found[name] = value[rows // 2 :]
        else:
            found[name] = value
    return found


KEPT = ("time_ids", "resolution", "aspect_ratio")  # conditions that are not the text's
