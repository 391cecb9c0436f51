"""Golden dictionaries of dictionary_learning, built and run by it (in its environment)."""

import json
from typing import Any

import dictionary_learning.dictionary as plain
import torch
from common import D, K, S, case, expect, fill, inputs
from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
from dictionary_learning.trainers.top_k import AutoEncoderTopK

RUN = {"lm_name": "tiny-vit", "layer": 3, "submodule_name": "resid_post_layer_3", "lr": 1e-4}


@torch.no_grad()
def make(name: str, ae: Any, threshold: float | None = None, **loading: Any) -> None:
    """Save the state as its trainer does, with the trainer's config.json, and run it."""
    fill(ae, positive=("threshold",))
    if threshold is not None:
        ae.threshold.fill_(threshold)
    checkpoint = case(f"dictionary_learning-{name}", "dictionary_learning")
    torch.save(ae.state_dict(), checkpoint / "ae.pt")
    sizes = {"activation_dim": D, "dict_size": S, "dict_class": type(ae).__name__}
    if hasattr(ae, "k"):
        sizes["k"] = ae.k.item()
    text = json.dumps({"trainer": RUN | sizes, "buffer": {"d_submodule": D, "ctx_len": 128}})
    (checkpoint / "config.json").write_text(text)
    ae = type(ae).from_pretrained(checkpoint / "ae.pt", **loading)
    x = inputs()
    codes = ae.encode(x)
    expect(checkpoint, x, codes, ae.decode(codes))


def main() -> None:
    make("standard", plain.AutoEncoder(D, S), normalize_decoder=False)
    make("standard-new", plain.AutoEncoderNew(D, S))
    make("gated", plain.GatedAutoEncoder(D, S))
    make("jumprelu", plain.JumpReluAutoEncoder(D, S))
    make("topk", AutoEncoderTopK(D, S, K))
    make("batchtopk", BatchTopKSAE(D, S, K), threshold=0.8)
    make("matryoshka", MatryoshkaBatchTopKSAE(D, S, K, [6, 6, 12]), threshold=0.8)


if __name__ == "__main__":
    main()
