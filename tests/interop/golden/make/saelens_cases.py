"""Golden SAEs of SAELens, written and run by SAELens itself (in an environment of it)."""

import json
from pathlib import Path
from typing import Any

import torch
from common import D_OUT, D, K, S, case, expect, fill, inputs
from sae_lens import SAE
from sae_lens.registry import get_sae_class, get_sae_training_class

META = {
    "model_name": "tiny-vit",
    "hook_name": "blocks.3.hook_resid_post",
    "prepend_bos": False,
    "context_size": 50,
}


def config(kind: Any, **extra: Any) -> Any:
    cfg = kind(d_in=D, d_sae=S, **extra)
    for key, value in META.items():
        setattr(cfg.metadata, key, value)
    return cfg


@torch.no_grad()
def finish(checkpoint: Path, scale: float | None = None) -> None:
    """What the library gives for the folder just written."""
    sae = SAE.load_from_disk(checkpoint)
    if scale is not None:
        sae.fold_activation_norm_scaling_factor(scale)
    x = inputs()
    expect(checkpoint, x, sae.encode(x), sae(x))


def inference(name: str, architecture: str, **extra: Any) -> None:
    kind, cfg = get_sae_class(architecture)
    sae = kind(config(cfg, **extra))
    fill(sae, positive=("threshold",))
    if architecture == "matching_pursuit":
        sae.W_dec.data /= sae.W_dec.norm(dim=1, keepdim=True)
    checkpoint = case(f"saelens-{name}", "saelens")
    sae.save_model(checkpoint)
    finish(checkpoint)


def trainer(architecture: str, **extra: Any) -> Any:
    kind, cfg = get_sae_training_class(architecture)
    sae = kind(config(cfg, **extra))
    fill(sae, positive=("threshold",))
    if hasattr(sae, "topk_threshold"):
        sae.topk_threshold.fill_(0.8)
    return sae


def training(name: str, architecture: str, scale: float | None = None, **extra: Any) -> None:
    """A training SAE saved for inference; with a scale, folded as the trainer folds it."""
    sae = trainer(architecture, **extra)
    if scale is not None:
        sae.fold_activation_norm_scaling_factor(scale)
    checkpoint = case(f"saelens-{name}", "saelens")
    sae.save_inference_model(checkpoint)
    finish(checkpoint)


@torch.no_grad()
def unfinished(name: str, architecture: str, **extra: Any) -> None:
    """A checkpoint from the middle of a run; the codes are those of its inference form."""
    sae = trainer(architecture, **extra)
    checkpoint = case(f"saelens-{name}", "saelens")
    sae.save_inference_model(checkpoint)
    finish(checkpoint)
    for file in checkpoint.iterdir():
        file.unlink()
    sae.save_model(checkpoint)


def unfolded(name: str, architecture: str, scale: float) -> None:
    """An intermediate checkpoint whose scaling factor lies beside the weights."""
    kind, cfg = get_sae_class(architecture)
    sae = kind(config(cfg, normalize_activations="expected_average_only_in"))
    fill(sae, positive=("threshold",))
    checkpoint = case(f"saelens-{name}", "saelens")
    sae.save_model(checkpoint)
    text = json.dumps({"scaling_factor": scale, "has_whitening": False})
    (checkpoint / "activation_scaler.json").write_text(text)
    finish(checkpoint, scale)


def legacy(name: str, **extra: Any) -> None:
    """The flat config of before version 6, on weights of today."""
    kind, cfg = get_sae_class("topk")
    sae = kind(config(cfg, k=K))
    fill(sae)
    checkpoint = case(f"saelens-{name}", "saelens")
    sae.save_model(checkpoint)
    old = {
        "hook_point": META["hook_name"],
        "model_name": META["model_name"],
        "hook_point_head_index": None,
        "d_in": D,
        "d_sae": S,
        "dtype": "float32",
        "device": "cpu",
        "activation_fn_str": "topk",
        "activation_fn_kwargs": {"k": K},
        "normalize_activations": False,
        "context_size": 50,
        **extra,
    }
    (checkpoint / "cfg.json").write_text(json.dumps(old))
    finish(checkpoint)


def main() -> None:
    inference("standard", "standard")
    inference("standard-uncentred", "standard", apply_b_dec_to_input=False)
    inference("standard-layer-norm", "standard", normalize_activations="layer_norm")
    inference("standard-constant-norm", "standard", normalize_activations="constant_norm_rescale")
    inference("gated", "gated")
    inference("jumprelu", "jumprelu")
    inference("jumprelu-layer-norm", "jumprelu", normalize_activations="layer_norm")
    inference("topk", "topk", k=K)
    inference("topk-rescale", "topk", k=K, rescale_acts_by_decoder_norm=True)
    inference("abstopk", "abstopk", k=K)
    pursuit = {"residual_threshold": 0.1, "max_iterations": 5, "stop_on_duplicate_support": False}
    inference("matching-pursuit", "matching_pursuit", **pursuit)
    stopping = {"residual_threshold": 0.1, "max_iterations": 12, "stop_on_duplicate_support": True}
    inference("matching-pursuit-stopping", "matching_pursuit", **stopping)
    transcoder = {"d_out": D_OUT, "apply_b_dec_to_input": False}
    inference("transcoder", "transcoder", **transcoder)
    inference("skip-transcoder", "skip_transcoder", **transcoder)
    inference("jumprelu-transcoder", "jumprelu_transcoder", **transcoder)
    inference("jumprelu-skip-transcoder", "jumprelu_skip_transcoder", **transcoder)
    training("trained-batchtopk", "batchtopk", k=3.0)
    training("trained-batchtopk-plain", "batchtopk", k=3.0, rescale_acts_by_decoder_norm=False)
    training("trained-matryoshka", "matryoshka_batchtopk", k=3.0, matryoshka_widths=[8, 16, S])
    training("trained-topk", "topk", k=K)
    training("trained-jumprelu", "jumprelu")
    training("trained-gated", "gated")
    folded = {"normalize_activations": "expected_average_only_in"}
    training("folded-standard", "standard", scale=1.7, **folded)
    training("folded-batchtopk", "batchtopk", scale=1.7, k=3.0, **folded)
    unfolded("unfolded-standard", "standard", 1.7)
    unfolded("unfolded-jumprelu", "jumprelu", 1.7)
    unfinished("unfinished-batchtopk", "batchtopk", k=3.0)
    unfinished(
        "unfinished-matryoshka",
        "matryoshka_batchtopk",
        k=3.0,
        matryoshka_widths=[8, 16, S],
        rescale_acts_by_decoder_norm=False,
    )
    legacy("legacy-topk")


if __name__ == "__main__":
    main()
