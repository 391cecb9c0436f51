"""ESD-x (Gandikota et al. 2023, arXiv 2303.07345): fine-tune the cross-attention to forget."""

import copy
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from vision_sae.adapters.diffusion import TrajectoryAdapter
from vision_sae.adapters.diffusion_inputs import (
    Conditions,
    conditions,
    denoise,
    denoiser_of,
    image_size,
)
from vision_sae.data.prompts import Prompt
from vision_sae.errors import ConfigError
from vision_sae.recipes.unlearn.baselines.words import VocabularyWords, Words, asked, left_alone
from vision_sae.recipes.unlearn.removal import Draw, Removal

log = logging.getLogger(__name__)
Weights = dict[str, Tensor]
PART = ".attn2."  # where diffusers keeps cross-attention


@dataclass(frozen=True)
class CrossAttentionTuning:
    """Trains the denoiser's cross-attention (attn2) to answer a concept's prompts c with

        e(x_t, c, t)  ->  e*(x_t, "", t) - eta (e*(x_t, c, t) - e*(x_t, "", t))

    where e* is the denoiser as it was. x_t are noised samples of the model itself, `images` of each
    concept, drawn once; the paper draws partial trajectories at every step, which costs more.
    `keep` weighs a second term, that other prompts o are answered as before on their own samples:
    e(x_t, o, t) -> e*(x_t, o, t); the paper has none. The removal swaps weights in and out. Raises
    ConfigError for a denoiser without attn2.
    """

    eta: float = 1.0
    keep: float = 0.0
    updates: int = 300
    lr: float = 1e-4
    batch_size: int = 16
    images: int = 64
    steps: int = 25
    guidance: float = 3.0
    seed: int = 0
    words: Words = field(default_factory=VocabularyWords)
    name: str = "cross-attention tuning"

    def fit(self, pipe: Any, concepts: Sequence[str]) -> Removal:
        teacher = denoiser_of(pipe)
        names = cross_attention(teacher)
        of = [p for concept in concepts for p in asked(self.words, concept)]
        away = [p for c in concepts for p in left_alone(self.words, c, concepts)]
        count = self.images * len(concepts)
        samples = [self._samples(pipe, of, count, self.seed)]
        if self.keep:
            samples.append(self._samples(pipe, away, count, self.seed + count))
        student = copy.deepcopy(teacher).requires_grad_(False)
        self._tune(pipe, teacher, student, names, samples)
        tuned = {name: student.get_parameter(name).detach() for name in names}
        return swapping(tuned)

    def _samples(self, pipe: Any, prompts: Sequence[str], count: int, seed: int) -> "_Samples":
        """Latents that the model draws, and the prompts they are drawn for."""
        adapter = TrajectoryAdapter(pipe, steps=self.steps, guidance=self.guidance, name="esd")
        asks = [Prompt(prompts[i % len(prompts)], seed + i) for i in range(count)]
        latents = []
        with torch.no_grad():
            for start in range(0, count, self.batch_size):
                batch = adapter.prepare(asks[start : start + self.batch_size])
                latents.append(adapter.run(batch).clone())
        size = image_size(pipe, None, None)
        texts = {text: conditions(pipe, text, size) for text in {ask.text for ask in asks}}
        return _Samples(torch.cat(latents), [texts[ask.text] for ask in asks])

    def _tune(
        self,
        pipe: Any,
        teacher: nn.Module,
        student: nn.Module,
        names: Sequence[str],
        samples: Sequence["_Samples"],
    ) -> None:
        trained = [student.get_parameter(name).requires_grad_(True) for name in names]
        optimizer = torch.optim.Adam(trained, lr=self.lr)
        chance = torch.Generator().manual_seed(self.seed)
        empty = conditions(pipe, "", image_size(pipe, None, None))
        for step in range(self.updates):
            x, t, given = samples[0].noised(pipe, self.batch_size, chance)
            goal = self._goal(teacher, x, t, given, empty)
            loss = mse_loss(denoise(student, x, t, given), goal)
            if self.keep:
                x, t, given = samples[1].noised(pipe, self.batch_size, chance)
                with torch.no_grad():
                    goal = denoise(teacher, x, t, given)
                loss = loss + self.keep * mse_loss(denoise(student, x, t, given), goal)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            if step % 50 == 0:
                log.info("cross-attention tuning: step %d, loss %.4g", step, float(loss.detach()))

    @torch.no_grad()
    def _goal(
        self, teacher: nn.Module, x: Tensor, t: Tensor, given: Conditions, empty: Conditions
    ) -> Tensor:
        plain = denoise(teacher, x, t, empty)
        return plain - self.eta * (denoise(teacher, x, t, given) - plain)


class _Samples:
    """Clean latents with the conditions they were drawn under."""

    def __init__(self, latents: Float[Tensor, "n c h w"], given: Sequence[Conditions]) -> None:
        self.latents, self.given = latents, given

    def noised(
        self, pipe: Any, b: int, chance: torch.Generator
    ) -> tuple[Tensor, Tensor, Conditions]:
        """A random batch at random timesteps."""
        chosen = torch.randint(len(self.latents), (b,), generator=chance)
        clean = self.latents[chosen]
        last = pipe.scheduler.config.num_train_timesteps
        t = torch.randint(last, (b,), generator=chance).to(clean.device)
        noise = torch.randn(clean.shape, generator=chance).to(clean)
        given = [self.given[i] for i in chosen.tolist()]
        joined = {name: torch.cat([each[name] for each in given]) for name in given[0]}
        return pipe.scheduler.add_noise(clean, noise, t), t, joined


def cross_attention(denoiser: nn.Module) -> list[str]:
    """The names of the cross-attention's parameters. Raises ConfigError when there are none."""
    names = [name for name, _ in denoiser.named_parameters() if PART in name]
    if not names:
        raise ConfigError(
            f"{type(denoiser).__name__} has no parameters in {PART.strip('.')}: its text does not "
            "enter by cross-attention, which is what this tunes"
        )
    return names


def swapping(weights: Weights) -> Callable[[Any], Any]:
    """A removal that puts these weights of the denoiser in and takes them out again."""

    @contextmanager
    def removal(pipe: Any) -> Iterator[Draw]:
        denoiser = denoiser_of(pipe)
        held = {name: denoiser.get_parameter(name).data for name in weights}
        try:
            for name, tensor in weights.items():
                denoiser.get_parameter(name).data = tensor.to(held[name])
            yield pipe
        finally:
            for name, tensor in held.items():
                denoiser.get_parameter(name).data = tensor

    return removal
