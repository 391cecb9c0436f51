"""Golden SAEs of formats whose libraries are not on PyPI: laid out from their documented keys.

The expected values come from the documented formulas in numpy, not from running the library.
"""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import D, K, S, case, expect, inputs, normal
from numpy.typing import NDArray
from safetensors.torch import save_file

Array = NDArray[np.float32]


def weights(seed: int) -> dict[str, Array]:
    """W_enc [d s], W_dec [s d], b_enc [s], b_dec [d]."""
    shapes = {"W_enc": (D, S), "W_dec": (S, D), "b_enc": (S,), "b_dec": (D,)}
    return {
        name: normal(shape, seed * 10 + i, 0.5 if len(shape) == 2 else 0.3).numpy()
        for i, (name, shape) in enumerate(shapes.items())
    }


def tensors(**arrays: Any) -> dict[str, Any]:
    return {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in arrays.items()}


def relu(z: Array) -> Array:
    return np.maximum(z, 0)


def topk(z: Array, k: int) -> Array:
    """The k largest of each row; the rest 0."""
    order = np.argsort(-z, axis=1)
    kept = np.zeros_like(z)
    np.put_along_axis(kept, order[:, :k], np.take_along_axis(z, order[:, :k], axis=1), axis=1)
    return kept


def standardise(x: Array) -> tuple[Array, Array, Array]:
    """Rows less their mean, over their unbiased standard deviation plus 1e-5."""
    mean = x.mean(1, keepdims=True)
    std = (x - mean).std(1, ddof=1, keepdims=True)
    return (x - mean) / (std + 1e-5), mean, std


def finish(checkpoint: Path, x: Array, codes: Array, x_hat: Array) -> None:
    expect(checkpoint, *(torch.from_numpy(a.astype(np.float32)) for a in (x, codes, x_hat)))


def openai(k: int | None) -> None:
    """TopK ones standardise each row, ReLU ones do not; the activation lies in the state dict."""
    w, x = weights(1), inputs().numpy()
    name = "topk" if k else "relu"
    checkpoint = case(f"openai-{name}", "openai", "checkpoint/autoencoder.pt")
    state = tensors(**{"encoder.weight": w["W_enc"].T, "decoder.weight": w["W_dec"].T})
    state |= tensors(pre_bias=w["b_dec"], latent_bias=w["b_enc"])
    state["stats_last_nonzero"] = torch.zeros(S, dtype=torch.long)
    state["latents_activation_frequency"] = torch.ones(S)
    state["latents_mean_square"] = torch.zeros(S)
    state |= {"activation": "ReLU", "activation_state_dict": {}}
    if k:
        inner = {"k": k, "postact_fn": "ReLU"}
        state |= {"activation": "TopK", "activation_state_dict": inner}
    torch.save(state, checkpoint / "autoencoder.pt")
    rows, mean, std = standardise(x) if k else (x, 0, 1)
    z = (rows - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
    codes = relu(topk(z, k)) if k else relu(z)
    finish(checkpoint, x, codes, (codes @ w["W_dec"] + w["b_dec"]) * std + mean)


def ksae(name: str, *, nested: bool = True) -> None:
    """The k-sparse autoencoder of sdxl-unbox, which Concept Steerers took over."""
    w, x = weights(2), inputs().numpy()
    checkpoint = case(name, "ksae")
    config = {"n_dirs_local": S, "d_model": D, "k": K, "auxk": 6, "dead_steps_threshold": 100}
    config |= {"auxk_coef": 1 / 32} if nested else {}
    (checkpoint / "config.json").write_text(json.dumps(config))
    state = tensors(**{"encoder.weight": w["W_enc"].T, "decoder.weight": w["W_dec"].T})
    state |= tensors(pre_bias=w["b_dec"], latent_bias=w["b_enc"])
    state["stats_last_nonzero"] = torch.zeros(S, dtype=torch.long)
    torch.save({"state_dict": state} if nested else state, checkpoint / "state_dict.pth")
    codes = relu(topk((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"], K))
    finish(checkpoint, x, codes, codes @ w["W_dec"] + w["b_dec"])


def saeuron(name: str, *, unit_norm: bool, batch: bool) -> None:
    """SAeUron's fork of sparsify; what was trained with a batch top-k is used with a row's."""
    w, x = weights(3), inputs().numpy()
    checkpoint = case(name, "sparsify")
    config = {"expansion_factor": 3, "normalize_decoder": True, "num_latents": 0, "k": K}
    config |= {"batch_topk": batch, "sample_topk": False, "input_unit_norm": unit_norm}
    config |= {"multi_topk": False, "d_in": D}
    (checkpoint / "cfg.json").write_text(json.dumps(config))
    state = tensors(**{"encoder.weight": w["W_enc"].T, "encoder.bias": w["b_enc"]})
    save_file(state | tensors(W_dec=w["W_dec"], b_dec=w["b_dec"]), checkpoint / "sae.safetensors")
    rows, mean, std = standardise(x) if unit_norm else (x, 0, 1)
    codes = topk(relu((rows - w["b_dec"]) @ w["W_enc"] + w["b_enc"]), K)
    finish(checkpoint, x, codes, (codes @ w["W_dec"] + w["b_dec"]) * std + mean)


def gemma_scope(name: str, *, lower: bool) -> None:
    """Gemma Scope's params.npz: JumpReLU, nothing is taken off the input."""
    w, x = weights(4), inputs().numpy()
    checkpoint = case(name, "gemma_scope", "checkpoint/params.npz")
    threshold = np.linspace(0.2, 0.9, S, dtype=np.float32)
    arrays = w | {"threshold": threshold}
    np.savez(checkpoint / "params.npz", **{k.lower() if lower else k: v for k, v in arrays.items()})
    z = x @ w["W_enc"] + w["b_enc"]
    codes = relu(z) * (z > threshold)
    finish(checkpoint, x, codes, codes @ w["W_dec"] + w["b_dec"])


def saev(name: str, activation: dict[str, Any], schema: int, kind: str) -> None:
    """A line of JSON, then the state dict; b_dec is not taken off the input."""
    w, x = weights(5), inputs().numpy()
    checkpoint = case(name, "saev", "checkpoint/sae.pt")
    sizes = {"d_model": D, "d_sae": S} if schema > 2 else {"d_vit": D, "exp_factor": S // D}
    header = {"schema": schema, "cfg": sizes | {"activation": activation}, "lib": "0.1.0"}
    state, buffer = tensors(**w), io.BytesIO()
    if kind == "batch":
        state["activation.threshold"] = torch.tensor(0.8)
    torch.save(state, buffer)
    line = (json.dumps(header) + "\n").encode()
    (checkpoint / "sae.pt").write_bytes(line + buffer.getvalue())
    z = x @ w["W_enc"] + w["b_enc"]
    codes = {"relu": relu(z), "topk": topk(z, K), "batch": z * (z > 0.8)}[kind]
    finish(checkpoint, x, codes, codes @ w["W_dec"] + w["b_dec"])


def msae(file: str, name: str, *, tied: bool = False, jump: bool = False, **settings: Any) -> None:
    """MSAE: the data's mean and scale lie beside the state, its shape is in the file's name."""
    w, x = weights(6), inputs().numpy()
    checkpoint = case(name, "msae", f"checkpoint/{file}", **settings)
    mean, scale = normal((D,), 66, 0.5).numpy(), 1.3
    state = tensors(encoder=w["W_enc"], pre_bias=w["b_dec"], latent_bias=w["b_enc"])
    state |= {} if tied else tensors(decoder=w["W_dec"])
    state["latents_activation_frequency"] = torch.zeros(S, dtype=torch.int64)
    threshold = np.linspace(0.2, 0.9, S, dtype=np.float32)
    state |= tensors(**{"activation.log_threshold": np.log(threshold)}) if jump else {}
    whole = {"model": state, "mean_center": torch.from_numpy(mean)}
    torch.save(whole | {"scaling_factor": scale, "target_norm": 2.8}, checkpoint / file)
    z = ((x - mean) * scale - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
    codes = relu(z) * (z > threshold) if jump else relu(z)
    codes = topk(codes, settings["k"]) if "k" in settings else codes
    decoder = w["W_enc"].T if tied else w["W_dec"]
    finish(checkpoint, x, codes, (codes @ decoder + w["b_dec"]) / scale + mean)


def prisma(name: str, *, architecture: str = "standard", **config: Any) -> None:
    """ViT-Prisma: weights.pt and config.json; b_dec is taken off after the row's treatment."""
    w, x = weights(8), inputs().numpy()
    checkpoint = case(name, "prisma")
    config |= {"architecture": architecture, "d_in": D, "d_sae": S, "hook_point_layer": 3}
    config |= {"layer_subtype": "hook_resid_post", "model_name": "tiny-vit"}
    config |= {"dtype": {"__type__": "torch.dtype", "value": "torch.float32"}}
    (checkpoint / "config.json").write_text(json.dumps(config))
    state = tensors(**w)
    extra = {key: normal((S,), 80 + i, 0.3) for i, key in enumerate(("b_gate", "b_mag", "r_mag"))}
    torch.save(state | (extra if architecture == "gated" else {}), checkpoint / "weights.pt")
    norm = config["normalize_activations"]
    rows, mean, std = standardise(x) if norm == "layer_norm" else (x, 0, 1)
    z = (rows - w["b_dec"]) @ w["W_enc"]
    codes = relu(z + w["b_enc"])
    if config["activation_fn_str"] == "topk":
        codes = topk(codes, K)
    if architecture == "gated":
        gate, mag, r_mag = (extra[key].numpy() for key in ("b_gate", "b_mag", "r_mag"))
        codes = relu(z * np.exp(r_mag) + mag) * (z + gate > 0)
    finish(checkpoint, x, codes, (codes @ w["W_dec"] + w["b_dec"]) * std + mean)


def main() -> None:
    openai(K)
    openai(None)
    ksae("ksae-sdxl-unbox")
    ksae("ksae-bare", nested=False)
    saeuron("saeuron-batchtopk", unit_norm=False, batch=True)
    saeuron("saeuron-standardised", unit_norm=True, batch=False)
    gemma_scope("gemma_scope-jumprelu", lower=False)
    gemma_scope("gemma_scope-lower-case", lower=True)
    saev("saev-relu", {"cls": "Relu", "params": {}}, 2, "relu")
    saev("saev-topk", {"cls": "TopK", "params": {"key": "top-k", "top_k": K}}, 5, "topk")
    saev("saev-batchtopk", {"cls": "BatchTopK", "params": {"top_k": K}}, 4, "batch")
    msae(f"{S}_{D}_TopKReLU_8_UW_False_False_0.0_cc3m.pt", "msae-matryoshka")
    msae(f"{S}_{D}_TopKReLU_8_RW_True_False_0.0_cc3m.pt", "msae-tied-topk", tied=True, k=K)
    msae(f"{S}_{D}_ReLU_003_False_False_0.0_cc3m.pt", "msae-relu")
    msae(f"{S}_{D}_JumpReLU_False_False_0.0_cc3m.pt", "msae-jumprelu", jump=True)
    plain = {"activation_fn_str": "relu", "activation_fn_kwargs": {}}
    prisma("prisma-standard", normalize_activations="layer_norm", **plain)
    prisma("prisma-gated", architecture="gated", normalize_activations="none", **plain)
    top = {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}}
    prisma("prisma-topk", normalize_activations="layer_norm", **top)


if __name__ == "__main__":
    main()
