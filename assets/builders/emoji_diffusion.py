"""Train emoji-diffusion: a small Stable Diffusion of 20 objects in 9 looks, 32 px.

  python -m vision_sae.assets.builders.emoji_diffusion --out assets/emoji-diffusion --work runs/ed

About fifty minutes on two quiet CPU cores; run the same command again to resume. First the
autoencoder, then the latents of many painted pictures, then the U-Net together with the text
encoder. Text enters the U-Net at three attentions, all at its lowest resolution.
"""

import argparse
import itertools
import json
import random
import time
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from vision_sae.assets.canvas import SPLITS, EmojiCanvas, decode
from vision_sae.assets.painting import paint
from vision_sae.assets.vocabulary import DRAWN_AS, OBJECTS, STYLES, texts
from vision_sae.files import part, write_json
from vision_sae.train.resume import optimizer_tensors, restore_optimizer

LIBRARY: Any = diffusers  # its classes are not annotated
VENDORS = ("noto", "twemoji", "fluent")
STENCILS = ("fluent-high-contrast",)
LOOK_NAMES = ("", *STYLES)
CONTEXT, WORDS = 20, 1_000  # tokens of a prompt, entries of the vocabulary
KL, EMA, EMPTY = 1e-6, 0.999, 0.1
TEXTS = 200  # prompts per (object, look)
PICTURES = 300  # latents per (object, look)


# ---- pictures


@cache
def drawings() -> dict[tuple[str, str], Tensor]:
    """(object, vendor) -> [4 64 64], from all splits: this model's test is another one."""
    wanted = {DRAWN_AS.get(name, name): name for name in OBJECTS}
    found = {}
    for split in SPLITS:
        canvas = EmojiCanvas(split)
        for about, webp in zip(canvas.about, canvas._webp, strict=True):
            if about["name"] in wanted and about["style"] in VENDORS + STENCILS:
                found[wanted[about["name"]], about["style"]] = decode(webp)
    return found


def painted(name: str, look: str, count: int, generator: torch.Generator) -> Tensor:
    """[count 3 32 32] pictures of one object in one look, its vendors in turn."""
    vendors = STENCILS if look == "stencil" else VENDORS
    rgba = [drawings()[name, vendor] for vendor in vendors]
    return paint(torch.stack([rgba[i % len(rgba)] for i in range(count)]), look, generator)


def pairs() -> list[tuple[str, str]]:
    """Every (object, look), in the order of the latents."""
    return list(itertools.product(OBJECTS, LOOK_NAMES))


def mixed_pictures(count: int, generator: torch.Generator) -> Tensor:
    """[count 3 32 32] of random objects; each look gets its share."""
    each = -(-count // len(LOOK_NAMES))
    pictures = []
    for look in LOOK_NAMES:
        vendors = STENCILS if look == "stencil" else VENDORS
        who = torch.randint(len(OBJECTS), (each,), generator=generator).tolist()
        by = torch.randint(len(vendors), (each,), generator=generator).tolist()
        rgba = [drawings()[OBJECTS[o], vendors[v]] for o, v in zip(who, by, strict=True)]
        pictures.append(paint(torch.stack(rgba), look, generator))
    return torch.cat(pictures)[torch.randperm(each * len(LOOK_NAMES), generator=generator)[:count]]


# ---- parts


def vae() -> Any:
    return LIBRARY.AutoencoderKL(
        block_out_channels=(32, 48, 64), layers_per_block=1, latent_channels=8,
        norm_num_groups=16, mid_block_add_attention=False, sample_size=32,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
    )  # fmt: skip


def unet() -> Any:
    return LIBRARY.UNet2DConditionModel(
        sample_size=8, in_channels=8, out_channels=8, layers_per_block=1,
        block_out_channels=(64, 128), cross_attention_dim=96, attention_head_dim=4,
        norm_num_groups=16, down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip


def text_encoder(tokenizer: Any) -> Any:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=96, intermediate_size=384, num_hidden_layers=3,
        num_attention_heads=4, max_position_embeddings=CONTEXT, projection_dim=96,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return CLIPTextModel(config)


def tokenizer(prompts: Iterable[str]) -> Any:
    """CLIP's tokenizer with a byte-pair vocabulary of these prompts."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    inner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    inner.normalizer = normalizers.Lowercase()
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=WORDS - 2 - len(letters), end_of_word_suffix="</w>",
        initial_alphabet=letters, show_progress=False,
    )  # fmt: skip
    inner.train_from_iterator(prompts, trainer)
    model = json.loads(inner.to_str())["model"]
    names = sorted(model["vocab"], key=model["vocab"].__getitem__)
    names += [f"{letter}</w>" for letter in letters if f"{letter}</w>" not in model["vocab"]]
    names += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {name: i for i, name in enumerate(names)}
    merges: Any = [tuple(pair) for pair in model["merges"]]
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=CONTEXT)


def scheduler() -> Any:
    return LIBRARY.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        set_alpha_to_one=False, steps_offset=1,
    )  # fmt: skip


# ---- training


class Run:
    """A model, its moving average, Adam and the step: all that a resumed run needs."""

    def __init__(self, model: Any, path: Path, lr: float, steps: int) -> None:
        self.model, self.path, self.lr, self.steps, self.step = model, path, lr, steps, 0
        self.average = {name: p.detach().clone() for name, p in model.named_parameters()}
        self.adam = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0, fused=True)
        if path.exists():
            self._load()

    def save(self) -> None:
        state = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        state |= {f"average.{k}": v for k, v in self.average.items()}
        state |= optimizer_tensors(self.adam)
        partial = self.path.with_suffix(".partial")
        tensors = {k: v.clone().contiguous() for k, v in state.items()}
        save_file(tensors, partial, {"step": str(self.step)})
        partial.rename(self.path)

    def _load(self) -> None:
        with safe_open(self.path, "pt") as file:
            self.step = int(file.metadata()["step"])
        state = load_file(self.path)
        self.model.load_state_dict(part(state, "model."))
        self.average = part(state, "average.")
        restore_optimizer(self.adam, state)

    def go(self, loss_of: Callable[[int], Tensor]) -> None:
        """Train to the end: a line every 50 steps, a checkpoint every three minutes."""
        started = saved = time.time()
        while self.step < self.steps:
            loss = self._train_step(loss_of)
            if self.step % 50 == 0:
                rate = time.time() - started
                print(f"{self.path.stem} {self.step} loss {loss:.4f} {rate:.0f} s", flush=True)
            if time.time() - saved > 180:
                self.save()
                saved = time.time()
        self.save()

    def _train_step(self, loss_of: Callable[[int], Tensor]) -> float:
        for group in self.adam.param_groups:
            group["lr"] = self.lr * _schedule(self.step, self.steps)
        loss = loss_of(self.step)
        self.adam.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.adam.step()
        self.step += 1
        decay = min(EMA, (1 + self.step) / (10 + self.step))
        now = [p.detach() for p in self.model.parameters()]
        torch._foreach_lerp_(list(self.average.values()), now, 1 - decay)
        return float(loss.detach())

    def averaged(self) -> Any:
        """The model with the moving average of its weights, for use."""
        self.model.load_state_dict(self.average, strict=False)
        return self.model.eval().requires_grad_(False)


def _schedule(step: int, steps: int) -> float:
    """Warm up over 100 steps, stay, and fall linearly over the last 40 %."""
    return min(1.0, (step + 1) / 100, (steps - step) / (0.4 * steps))


def train_vae(work: Path, steps: int, seed: int) -> Any:
    run = Run(vae(), work / "vae.safetensors", 1.5e-3, steps)

    def loss_of(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        x = mixed_pictures(36, generator) * 2 - 1
        with torch.autocast("cpu", torch.bfloat16):
            latent = run.model.encode(x).latent_dist
            noise = torch.randn(latent.mean.shape, generator=generator)
            y = run.model.decode(latent.mean + latent.std * noise).sample
        mean, logvar = latent.mean.float(), latent.logvar.float()
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum((1, 2, 3)).mean()
        loss: Tensor = (y.float() - x).abs().mean() + KL * kl
        return loss

    run.go(loss_of)
    return run.averaged()


@torch.no_grad()
def encode(model: Any, path: Path, seed: int) -> Tensor:
    """[pairs PICTURES 8 8 8] latent means of painted pictures, in fp16; kept in a file."""
    if not path.exists():
        generator, found = torch.Generator().manual_seed(seed + 17), []
        for name, look in pairs():
            pictures = painted(name, look, PICTURES, generator) * 2 - 1
            found.append(model.encode(pictures).latent_dist.mean.half())
        partial = path.with_suffix(".partial")
        save_file({"latents": torch.stack(found)}, partial)
        partial.rename(path)
    latents: Tensor = load_file(path)["latents"]
    return latents


class Denoiser(nn.Module):
    """The U-Net and the text encoder, which train together."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__()
        self.unet, self.text = unet(), text_encoder(tokenizer)

    def forward(self, latents: Tensor, times: Tensor, tokens: Tensor) -> Tensor:
        context = self.text(input_ids=tokens).last_hidden_state
        guess: Tensor = self.unet(latents, times, context).sample
        return guess


def token_table(tokenizer: Any, seed: int) -> Tensor:
    """[pairs + 1, TEXTS, CONTEXT]; the last pair is the empty prompt."""
    chance = random.Random(seed)
    prompts = [texts(*pair, TEXTS, chance) for pair in pairs()] + [[""] * TEXTS]
    flat = [text for some in prompts for text in some]
    tokens = tokenizer(
        flat, padding="max_length", truncation=True, max_length=CONTEXT, return_tensors="pt"
    )
    table: Tensor = tokens.input_ids.view(len(prompts), TEXTS, CONTEXT)
    return table


def train_denoiser(
    work: Path, words: Any, latents: Tensor, steps: int, seed: int, batch: int = 64
) -> Any:
    run = Run(Denoiser(words), work / "denoiser.safetensors", 1e-3, steps)
    noises, tokens = scheduler(), token_table(words, seed)

    def loss_of(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        pair = torch.randint(len(latents), (batch,), generator=generator)
        row = torch.randint(PICTURES, (batch,), generator=generator)
        prompt = torch.randint(TEXTS, (batch,), generator=generator)
        told = torch.rand(batch, generator=generator) >= EMPTY
        text = tokens[pair.where(told, torch.tensor(len(latents))), prompt]
        x = latents[pair, row].float()
        noise = torch.randn(x.shape, generator=generator)
        times = torch.randint(1000, (batch,), generator=generator)
        with torch.autocast("cpu", torch.bfloat16):
            guess = run.model(noises.add_noise(x, noise, times), times, text)
        return F.mse_loss(guess.float(), noise)

    run.go(loss_of)
    return run.averaged()


def export(out: Path, model: Any, autoencoder: Any, words: Any) -> None:
    pipe = LIBRARY.StableDiffusionPipeline(
        vae=autoencoder, text_encoder=model.text, tokenizer=words, unet=model.unet,
        scheduler=scheduler(), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    pipe.to(dtype=torch.float16).save_pretrained(out, safe_serialization=True)
    _load_as_float32(out / "text_encoder" / "config.json")
    for file in out.rglob("*.safetensors"):
        file.chmod(0o644)


def _load_as_float32(config: Path) -> None:
    """transformers loads in the dtype named here, diffusers in float32: make them agree."""
    told = json.loads(config.read_text())
    write_json(config, told | {"dtype": "float32"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="the pipeline's folder")
    parser.add_argument("--work", type=Path, required=True, help="checkpoints and latents")
    parser.add_argument("--vae-steps", type=int, default=4_500)
    parser.add_argument("--steps", type=int, default=9_000, help="of the U-Net and text encoder")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    autoencoder = train_vae(args.work, args.vae_steps, args.seed)
    latents = encode(autoencoder, args.work / "latents.safetensors", args.seed)
    scale = float(1 / latents.float().std())
    autoencoder.register_to_config(scaling_factor=scale)
    chance = random.Random(args.seed)
    words = tokenizer(text for pair in pairs() for text in texts(*pair, TEXTS, chance))
    model = train_denoiser(args.work, words, latents.float() * scale, args.steps, args.seed)
    export(args.out, model, autoencoder, words)


if __name__ == "__main__":
    main()
