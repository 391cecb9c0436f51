"""Prompts that ask for a removed concept in other ways: other words, misspellings, learnt tokens.

The learnt ones follow UnlearnDiffAtk (arXiv 2310.11868): a few token embeddings before the prompt,
such that the edited denoiser predicts the noise of clean pictures of the concept. An edit that
cuts the gradient is passed straight through, as if what it adds were a constant (BPDA, arXiv
1802.00420); what a removal does outside the denoiser and the text encoder, such as a negative
prompt, is met when the attacked pictures are drawn, not while tokens are learnt.
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vision_sae.errors import ConfigError
from vision_sae.recipes.unlearn.benchmark.draw import Plain
from vision_sae.recipes.unlearn.benchmark.world import Ask, World, parse
from vision_sae.recipes.unlearn.draw import unit
from vision_sae.recipes.unlearn.prompts import few
from vision_sae.recipes.unlearn.removal import Draw


@dataclass(frozen=True)
class Attack:
    """`tokens` embeddings, `steps` of AdamW with the sign of the gradient, on `images` pictures."""

    tokens: int = 5
    steps: int = 40
    images: int = 8
    lr: float = 0.01
    decay: float = 0.1
    seed: int = 0


# ---- other words


def reworded(world: World, concept: str, asks: Sequence[Ask], kind: str) -> list[Ask]:
    """The same pictures asked with "synonyms" or "misspellings" of the concept's word.

    Empty where the world has none. Raises ConfigError for another kind.
    """
    if kind not in ("synonyms", "misspellings"):
        raise ConfigError(f"kind must be synonyms or misspellings; got {kind!r}")
    chance, word = random.Random(0), parse(concept)[1]
    if kind == "synonyms":
        words = list((world.synonyms or {}).get(word, ()))
    else:
        words = [world.misspell(word, chance) for _ in range(8)] if world.misspell else []
    words = [other for other in dict.fromkeys(words) if other != word]
    if not words:
        return []
    return [_said(world, concept, ask, words[i % len(words)]) for i, ask in enumerate(asks)]


def _said(world: World, concept: str, ask: Ask, word: str) -> Ask:
    style = "" if ask.style == "plain" else ask.style
    if parse(concept)[0] == "object":
        return ask._replace(text=world.ask(word, style))
    return ask._replace(text=world.ask(ask.object, word))


# ---- learnt tokens


@contextmanager
def prefixed(
    pipe: Any, prompts: Sequence[str], prefix: Float[Tensor, "tokens d"]
) -> Iterator[None]:
    """Inside the block these prompts are read with the prefix's embeddings before them.

    They are known by their tokens, so that other prompts, negative ones too, stay as they are. All
    tokens move up, and what passes the end of the text encoder's length is lost.
    """
    asked = tokens_of(pipe, prompts).unique(dim=0)
    count = len(prefix)

    def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        ids = args[0]
        ours = (ids[:, None] == asked.to(ids.device)[None]).all(-1).any(-1)
        learnt = prefix.to(output.dtype).expand(len(output), -1, -1)
        moved = torch.cat([output[:, :1], learnt, output[:, 1:-count]], 1)
        return torch.where(ours[:, None, None], moved, output)

    handle = pipe.text_encoder.get_input_embeddings().register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def tokens_of(pipe: Any, prompts: Sequence[str]) -> Int[Tensor, "n length"]:
    """As Stable Diffusion's pipeline reads them."""
    tokenizer = pipe.tokenizer
    found: Tensor = tokenizer(
        list(prompts), padding="max_length", max_length=tokenizer.model_max_length,
        truncation=True, return_tensors="pt",
    ).input_ids  # fmt: skip
    return found


@contextmanager
def straight_through(model: nn.Module) -> Iterator[None]:
    """Inside the block what hooks of `model`'s modules change counts as added constants.

    Enter it after the hooks are there. Values stay the same but for rounding.
    """
    with ExitStack() as stack:
        for module in model.modules():
            if module._forward_hooks:
                for handle in _bracket(module):
                    stack.callback(handle.remove)
        yield


def _bracket(module: nn.Module) -> tuple[Any, Any]:
    raw: list[Tensor] = []

    def before(module: nn.Module, args: Any, output: Any) -> None:
        raw.append(_first(output))  # a hook may call the module again

    def after(module: nn.Module, args: Any, output: Any) -> Any:
        own, edited = raw.pop(), _first(output)
        passed = own + (edited - own).detach()
        if isinstance(output, Tensor):
            return passed
        if isinstance(output, tuple):
            return (passed, *output[1:])
        output[next(iter(output.keys()))] = passed
        return output

    first = module.register_forward_hook(before, prepend=True)
    return first, module.register_forward_hook(after)


def _first(output: Any) -> Tensor:
    found: Tensor = output if isinstance(output, Tensor) else output[0]
    return found


def learn_prefix(
    world: World,
    concept: str,
    asks: Sequence[Ask],
    plain: Plain,
    removal: Any = None,
    attack: Attack = Attack(),
) -> Float[Tensor, "tokens d"]:
    """Token embeddings that bring the concept back in spite of a removal (None: without one).

    The clean pictures are the unedited ones of these asks. Raises ConfigError for a pipeline other
    than Stable Diffusion 1 and 2, or for a prefix longer than the text encoder reads.
    """
    pipe = world.pipe
    _check(pipe, attack)
    some = few(asks, attack.images)
    latents = _latents(pipe, unit(plain(some)))
    ids = tokens_of(pipe, [ask.text for ask in some])
    chance = torch.Generator().manual_seed(attack.seed)
    table = pipe.text_encoder.get_input_embeddings().weight.detach().float()
    begin = table[torch.randint(len(table), (attack.tokens,), generator=chance)]
    prefix = begin.clone().requires_grad_()
    optimizer = torch.optim.AdamW([prefix], lr=attack.lr, weight_decay=attack.decay)
    with ExitStack() as stack:
        stack.enter_context(_guided(pipe, world.guidance))
        if removal is not None:
            stack.enter_context(removal(pipe))
        stack.enter_context(straight_through(pipe.unet))
        stack.enter_context(straight_through(pipe.text_encoder))
        stack.enter_context(prefixed(pipe, [ask.text for ask in some], prefix))
        stack.enter_context(torch.enable_grad())
        for _ in range(attack.steps):
            loss = _noise_error(pipe, ids, latents, chance)
            (gradient,) = torch.autograd.grad(loss, [prefix])
            prefix.grad = gradient.sign()
            optimizer.step()
    learnt: Tensor = prefix.detach()
    return learnt


def _check(pipe: Any, attack: Attack) -> None:
    if getattr(pipe, "unet", None) is None or hasattr(pipe, "text_encoder_2"):
        raise ConfigError(
            f"prefixes are learnt for Stable Diffusion 1 and 2 pipelines; got {type(pipe).__name__}"
        )
    length = pipe.tokenizer.model_max_length
    if not 0 < attack.tokens < length - 2:
        raise ConfigError(
            f"the text encoder reads {length} tokens, so a prefix may have 1 to {length - 3}; "
            f"got {attack.tokens}"
        )


@contextmanager
def _guided(pipe: Any, guidance: float) -> Iterator[None]:
    """The pipeline says that its denoiser is called with both halves, as it is below."""
    before = getattr(pipe, "_guidance_scale", None)
    pipe._guidance_scale = guidance
    try:
        yield
    finally:
        pipe._guidance_scale = before


@torch.no_grad()
def _latents(pipe: Any, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n c y x"]:
    vae = pipe.vae
    device, dtype = next(vae.parameters()).device, next(vae.parameters()).dtype
    found: Tensor = vae.encode((images * 2 - 1).to(device, dtype)).latent_dist.mean
    shift = getattr(vae.config, "shift_factor", None) or 0.0
    latents: Tensor = (found - shift) * vae.config.scaling_factor
    return latents


def _noise_error(
    pipe: Any, ids: Tensor, latents: Float[Tensor, "n c y x"], chance: torch.Generator
) -> Float[Tensor, ""]:
    """Mean squared error of the conditional half, all pictures at one random timestep."""
    scheduler, device = pipe.scheduler, latents.device
    total = scheduler.config.num_train_timesteps
    time = torch.randint(total, (1,), generator=chance).to(device)
    noise = torch.randn(latents.shape, generator=chance).to(latents)
    noisy = scheduler.add_noise(latents, noise, time.expand(len(latents)))
    empty = tokens_of(pipe, [""]).expand(len(ids), -1)
    text = pipe.text_encoder(torch.cat([empty, ids]).to(device))[0]
    found = pipe.unet(torch.cat([noisy, noisy]), time[0], encoder_hidden_states=text).sample
    wanted = noise
    if scheduler.config.prediction_type == "v_prediction":
        wanted = scheduler.get_velocity(latents, noise, time.expand(len(latents)))
    error: Tensor = (found[len(ids) :] - wanted).square().mean()
    return error


class Attacked:
    """What a removal's draw gives when the prompts carry a learnt prefix."""

    def __init__(self, pipe: Any, run: Draw, prefix: Float[Tensor, "tokens d"]) -> None:
        self.pipe, self.run, self.prefix = pipe, run, prefix

    def __call__(self, *, prompt: Sequence[str], **given: Any) -> Any:
        with prefixed(self.pipe, prompt, self.prefix):
            return self.run(prompt=prompt, **given)
