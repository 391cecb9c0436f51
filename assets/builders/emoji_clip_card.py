"""Measure emoji-clip for its card: zero-shot accuracy and linear probes, on the test split.

    python -m vision_sae.assets.builders.emoji_clip_card

Zero-shot is among all 1,562 names. Probes are logistic regressions on the unit image embeddings of
the train split (plain drawings on white and one seeded augmentation of each).
"""

import json
import warnings
from typing import Any

import torch
from torch import Tensor

from vision_sae.assets.builders.emoji_clip import all_names
from vision_sae.assets.canvas import augment, emoji_canvas
from vision_sae.model.adapter import load_adapter
from vision_sae.model.hooks import inference

SEED = 12345  # of the augmentations measured; training draws from other seeds


def embed(adapter: Any, split: str, *, strength: float) -> Tensor:
    """Unit embeddings [n e] of a split, as it is or once augmented."""
    images = augment(
        emoji_canvas(split).rgba(), torch.Generator().manual_seed(SEED), strength=strength
    )
    with inference(adapter.model):
        return torch.cat([adapter.embed_images((x - 0.5) / 0.5) for x in images.split(256)])


def top(embedded: Tensor, texts: Tensor, truth: Tensor) -> dict[str, float]:
    hits = (embedded @ texts.T).topk(5).indices == truth[:, None]
    return {"top-1": float(hits[:, 0].float().mean()), "top-5": float(hits.any(1).float().mean())}


def zero_shot(adapter: Any, embedded: dict[str, Tensor]) -> dict[str, dict[str, float]]:
    names = all_names()
    texts = adapter.embed_texts(names)
    number = {name: i for i, name in enumerate(names)}
    found = {}
    for split in ("train", "test"):
        about = emoji_canvas(split).about
        truth = torch.tensor([number[row["name"]] for row in about])
        for held_out in sorted({row.get("held_out", "") for row in about}):
            keep = torch.tensor([row.get("held_out", "") == held_out for row in about])
            what = f"held-out {held_out}s" if held_out else "unseen augmentations"
            found[what] = top(embedded[split][keep], texts, truth[keep])
    return found


def probe(factor: str, embedded: dict[str, Tensor], held_out: str) -> float:
    """Test accuracy of a logistic regression fitted on the train split."""
    from sklearn.linear_model import LogisticRegression

    train, test = emoji_canvas("train").about, emoji_canvas("test").about
    keep = [i for i, row in enumerate(test) if row["held_out"] == held_out]
    fit = LogisticRegression(C=100.0, max_iter=2000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit.fit(embedded["both"].numpy(), 2 * [row[factor] for row in train])
    score = fit.score(embedded["test"][keep].numpy(), [test[i][factor] for i in keep])
    return float(score)


def main() -> None:
    adapter: Any = load_adapter("emoji-clip")
    embedded = {split: embed(adapter, split, strength=1.0) for split in ("train", "test")}
    embedded["both"] = torch.cat([embedded["train"], embed(adapter, "train", strength=0.0)])
    numbers: dict[str, Any] = {"zero-shot": zero_shot(adapter, embedded)}
    for factor in ("category", "style"):
        for held_out in ("pair", "concept"):
            score = probe(factor, embedded, held_out)
            numbers[f"{factor} probe, held-out {held_out}s"] = score
    print(json.dumps(numbers, indent=1))


if __name__ == "__main__":
    main()
