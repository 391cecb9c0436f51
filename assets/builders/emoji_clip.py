"""Train emoji-clip, the embedded CLIP, on EmojiCanvas.

    python -m vision_sae.assets.builders.emoji_clip --out assets/emoji-clip --work runs/emoji-clip

About an hour on two quiet CPU cores; run the same command again to resume. Reads only the train
split; the numbers printed on the way come from new augmentations of it and from validation.

The recipe beside plain CLIP: patch dropout (FLIP, arXiv 2212.00794), a moving average of the
weights, captions drawn from several kinds, and a softmax of every image over *all* training names
(and styles, categories, subcategories), whose text embeddings are refreshed every few steps.
"""

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from vision_sae.assets.canvas import augment, emoji_canvas
from vision_sae.files import part, write_tensors
from vision_sae.store.order import shuffled
from vision_sae.train.resume import optimizer_tensors, restore_optimizer

BATCH, LR, WARMUP, DECAY, WEIGHT_DECAY = 256, 1e-3, 400, 0.35, 0.1
EMA, BANK_EVERY, GREY = 0.999, 20, 0.1
WEIGHTS = "open_clip_model.safetensors"


def style_words(style: str) -> str:
    from vision_sae.assets.builders.emoji_canvas import STYLE_WORDS

    return STYLE_WORDS.get(style, style.replace("-", " "))


def prompts(about: list[dict[str, Any]]) -> dict[str, list[str]]:
    """For each factor, the text that names its value, row by row."""
    return {
        "concept": [row["name"] for row in about],
        "style": [f"{style_words(row['style'])} style" for row in about],
        "category": [row["category"].replace("-", " and ") for row in about],
        "subcategory": [row["subcategory"].replace("-", " ") for row in about],
    }


@dataclass
class Factor:
    """One softmax: the distinct texts, and which of them is true of each row."""

    texts: list[str]
    label: Tensor  # [n]
    weight: float

    @classmethod
    def of(cls, texts: list[str], weight: float) -> "Factor":
        distinct = sorted(set(texts))
        number = {text: i for i, text in enumerate(distinct)}
        return cls(distinct, torch.tensor([number[t] for t in texts]), weight)


WEIGHT = {"concept": 1.0, "style": 0.2, "category": 0.2, "subcategory": 0.3}
KINDS = {"concept": 0.55, "caption": 0.2, "style": 0.05, "category": 0.05, "subcategory": 0.15}


def schedule(step: int, steps: int) -> float:
    """Warm up, stay, then fall linearly over the last part (so that `steps` can be chosen late)."""
    return min(1.0, (step + 1) / WARMUP, (steps - step) / (DECAY * steps))


class Data:
    """The train split in memory: drawings, the factors, and a tokenised caption of each kind."""

    def __init__(self, tokenizer: Any) -> None:
        canvas = emoji_canvas("train")
        self.rgba = canvas.rgba()
        texts = prompts(canvas.about)
        self.factors = {key: Factor.of(texts[key], WEIGHT[key]) for key in texts}
        texts["caption"] = [row["caption"] for row in canvas.about]
        self.tokens = torch.stack([tokenizer(texts[kind]) for kind in KINDS])  # [kind n 24]
        self.bank = {key: tokenizer(f.texts) for key, f in self.factors.items()}
        ids = {text: i for i, text in enumerate({t for kind in KINDS for t in texts[kind]})}
        self.text_id = torch.tensor([[ids[t] for t in texts[kind]] for kind in KINDS])

    def batch(self, rows: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """(images [b 3 64 64], tokens [b 24], which images each text is true of [b b])."""
        images = augment(self.rgba[rows], generator)
        grey = torch.rand(len(rows), generator=generator) < GREY
        images[grey] = images[grey].mean(1, keepdim=True)
        kind = torch.multinomial(
            torch.tensor(list(KINDS.values())), len(rows), replacement=True, generator=generator
        )
        text = self.text_id[kind, rows]  # [b]
        truth = (self.text_id[:, rows][:, None, :] == text[None, :, None]).any(0)  # [text image]
        return (images - 0.5) / 0.5, self.tokens[kind, rows], truth


def losses(
    images: Tensor, texts: Tensor, truth: Tensor, scale: Tensor, data: Data, rows: Tensor,
    bank: dict[str, Tensor],
) -> Tensor:  # fmt: skip
    """Text-to-image contrast with several true images, and each image against every name."""
    text_to_image = (scale * texts @ images.T).log_softmax(1)
    loss = -((text_to_image * truth).sum(1) / truth.sum(1)).mean()
    for key, factor in data.factors.items():
        logits = scale * images @ bank[key].T
        loss = loss + factor.weight * F.cross_entropy(
            logits, factor.label[rows], label_smoothing=0.05
        )
    return loss


def patch_dropout(step: int, steps: int) -> float:
    """Half of the patches are dropped until the decay begins, a quarter after; none at the end."""
    return 0.5 if step < 0.65 * steps else 0.25 if step < 0.93 * steps else 0.0


class Trainer:
    """Everything that a resumed run needs: weights, their average, Adam's moments, the step."""

    def __init__(self, config: dict[str, Any], seed: int) -> None:
        torch.manual_seed(seed)
        self.seed, self.step, self.seconds = seed, 0, 0.0
        self.model = self.build(config)
        self.average = self.build(config)
        self.average.load_state_dict(self.model.state_dict())
        decayed = [p for p in self.model.parameters() if p.ndim > 1]
        rest = [p for p in self.model.parameters() if p.ndim <= 1]
        groups: list[dict[str, Any]] = [
            {"params": decayed, "weight_decay": WEIGHT_DECAY},
            {"params": rest},
        ]
        self.adam = torch.optim.AdamW(
            groups, lr=LR, betas=(0.9, 0.98), weight_decay=0.0, fused=True
        )

    @staticmethod
    def build(config: dict[str, Any]) -> Any:
        vision = dict(config["vision_cfg"], patch_dropout=0.5)
        return open_clip.CLIP(config["embed_dim"], vision, config["text_cfg"])

    def save(self, path: Path) -> None:
        state = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        state |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        state |= optimizer_tensors(self.adam)
        about = {"step": str(self.step), "seconds": str(self.seconds)}
        partial = path.with_suffix(".partial")
        save_file({k: v.clone().contiguous() for k, v in state.items()}, partial, about)
        partial.rename(path)

    def load(self, path: Path) -> None:
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            about = file.metadata()
        self.step, self.seconds = int(about["step"]), float(about["seconds"])
        state = load_file(path)
        self.model.load_state_dict(part(state, "model."))
        self.average.load_state_dict(part(state, "average."))
        restore_optimizer(self.adam, state)

    def encode_bank(self, data: Data) -> dict[str, Tensor]:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            return {
                key: torch.cat(
                    [self.model.encode_text(t, normalize=True).float() for t in tokens.split(256)]
                )
                for key, tokens in data.bank.items()
            }

    def train_step(self, data: Data, rows: Tensor, bank: dict[str, Tensor], steps: int) -> float:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.step)
        torch.manual_seed(self.seed * 7_919 + self.step)  # patch dropout draws from this one
        for group in self.adam.param_groups:
            group["lr"] = LR * schedule(self.step, steps)
        images, tokens, truth = data.batch(rows, generator)
        self.model.visual.patch_dropout.prob = patch_dropout(self.step, steps)
        with torch.autocast("cpu", torch.bfloat16):
            image = self.model.encode_image(images, normalize=True)
            text = self.model.encode_text(tokens, normalize=True)
        scale = self.model.logit_scale.exp().clamp(max=100)
        loss = losses(image.float(), text.float(), truth, scale, data, rows, bank)
        self.adam.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.adam.step()
        self.update_average()
        self.step += 1
        return float(loss.detach())

    @torch.no_grad()
    def update_average(self) -> None:
        decay = min(EMA, (1 + self.step) / (10 + self.step))
        average, model = list(self.average.parameters()), list(self.model.parameters())
        torch._foreach_lerp_(average, model, 1 - decay)


@torch.no_grad()
def zero_shot(model: Any, tokenizer: Any, split: str, names: list[str]) -> dict[str, float]:
    """Top-1 and top-5 among `names`, on augmented pictures of held-out (concept, style) pairs."""
    canvas = emoji_canvas(split)
    keep = [
        i for i, row in enumerate(canvas.about) if row.get("held_out") == "pair" or split == "train"
    ]
    keep = keep[:2000]
    images = (augment(canvas.rgba()[keep], torch.Generator().manual_seed(999)) - 0.5) / 0.5
    model.eval()
    with torch.autocast("cpu", torch.bfloat16):
        text = torch.cat(
            [model.encode_text(t, normalize=True) for t in tokenizer(names).split(256)]
        )
        image = torch.cat([model.encode_image(x, normalize=True) for x in images.split(256)])
    model.train()
    top = (image.float() @ text.float().T).topk(5).indices
    truth = torch.tensor([names.index(canvas.about[i]["name"]) for i in keep])[:, None]
    return {
        "top1": float((top[:, :1] == truth).float().mean()),
        "top5": float((top == truth).any(1).float().mean()),
    }


def all_names() -> list[str]:
    return sorted(
        {
            row["name"]
            for split in ("train", "validation", "test")
            for row in emoji_canvas(split).about
        }
    )


def export(model: Any, path: Path) -> None:
    """fp16 safetensors, in the names that open_clip loads."""
    state = {k: v.half().contiguous() for k, v in model.state_dict().items() if k != "attn_mask"}
    write_tensors(path, state)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="holds open_clip_config.json")
    parser.add_argument("--work", type=Path, required=True, help="the checkpoint and the log")
    parser.add_argument("--steps", type=int, default=5_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    config = json.loads((args.out / "open_clip_config.json").read_text())["model_cfg"]
    tokenizer = open_clip.SimpleTokenizer(context_length=config["text_cfg"]["context_length"])
    trainer, data, names = Trainer(config, args.seed), Data(tokenizer), all_names()
    checkpoint = args.work / "checkpoint.safetensors"
    if checkpoint.exists():
        trainer.load(checkpoint)
    run(trainer, data, tokenizer, names, checkpoint, args)
    export(trainer.average, args.out / WEIGHTS)


def run(
    trainer: Trainer, data: Data, tokenizer: Any, names: list[str], checkpoint: Path, args: Any
) -> None:
    """The loop: a line every 50 steps, validation every 500, a checkpoint every three minutes."""
    saved, started, bank = time.time(), time.time(), trainer.encode_bank(data)
    for rows in shuffled(len(data.rgba), BATCH, seed=args.seed, start=trainer.step):
        if trainer.step >= args.steps:
            break
        if trainer.step % BANK_EVERY == 0:
            bank = trainer.encode_bank(data)
        with sdpa_kernel(SDPBackend.MATH):  # several times faster than flash attention here
            loss = trainer.train_step(data, rows, bank, args.steps)
        trainer.seconds, started = trainer.seconds + time.time() - started, time.time()
        if trainer.step % 50 == 0:
            print(f"step {trainer.step} loss {loss:.3f} seconds {trainer.seconds:.0f}", flush=True)
        if trainer.step % 500 == 0:
            for split in ("train", "validation"):
                print(split, zero_shot(trainer.average, tokenizer, split, names), flush=True)
        if time.time() - saved > 180:
            trainer.save(checkpoint)
            saved = time.time()
    trainer.save(checkpoint)


if __name__ == "__main__":
    main()
