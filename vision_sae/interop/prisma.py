"""ViT-Prisma: a folder of `weights.pt` (or `n_images_N.pt`) and `config.json`, for SAEs.

Released weights that pickle their config class are refused; save the state dict alone. The class
token or the patches that an SAE was trained on are the caller's to choose.
"""

import logging
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from vision_sae import families
from vision_sae.errors import CheckpointError
from vision_sae.families import Family
from vision_sae.interop.reading import Loose, assemble, parse, read_json, tensors_of, unpickle
from vision_sae.sae import SAE

log = logging.getLogger(__name__)

CONFIG = "config.json"
ROWS = {"none": "none", "constant_norm_rescale": "constant_norm", "layer_norm": "layer_norm"}
NAMED = {"model_name", "hook_point_layer", "layer_subtype", "cls_token_only"}


class TopK(Loose):
    k: int = Field(ge=1)


class Config(Loose):
    """The part of config.json that says what the SAE does, and what it was made from."""

    d_in: int = Field(ge=1)
    d_sae: int = Field(ge=1)
    architecture: Literal["standard", "gated"] = "standard"
    activation_fn_str: Literal["relu", "topk"] = "relu"
    activation_fn_kwargs: dict[str, Any] | None = None
    normalize_activations: Literal["none", "constant_norm_rescale", "layer_norm"] | None = None
    is_transcoder: bool = False
    model_name: Any = None
    hook_point_layer: Any = None
    layer_subtype: Any = None
    cls_token_only: Any = None


def claims(path: Path) -> bool:
    if not (path / CONFIG).is_file() or _file(path) is None:
        return False
    return "activation_fn_str" in read_json(path / CONFIG)


def read(path: Path) -> SAE:
    """A standard, gated or TopK SAE; codes are Prisma's."""
    cfg, file = parse(Config, read_json(path / CONFIG), path / CONFIG), _file(path)
    if cfg.is_transcoder:
        raise CheckpointError(f"{path} holds a transcoder; of Prisma only SAEs are read")
    if file is None:
        raise CheckpointError(f"{path} has no weights.pt and no n_images_*.pt")
    state = unpickle(file)
    weights = tensors_of(state.get("state_dict", state), file)
    d, s = cfg.d_in, cfg.d_sae
    W_enc, W_dec = weights.take("W_enc", d, s).T, weights.take("W_dec", s, d)
    b_enc, b_dec = weights.take("b_enc", s), weights.take("b_dec", d)
    family, extra = _family(cfg, path / CONFIG), {}
    if family.kind == "gated":
        b_enc = weights.take("b_gate", s)  # its b_enc is not used
        extra = {name: weights.take(name, s) for name in ("r_mag", "b_mag")}
    weights.finish(f"a {family.kind} SAE")
    log.info("%s: kept out of the SAE: %s", path, cfg.model_dump(include=NAMED))
    rows = ROWS[cfg.normalize_activations or "none"]
    return assemble(family, W_enc, b_enc, W_dec, b_dec, extra=extra, rows=rows)


def _file(path: Path) -> Path | None:
    if (path / "weights.pt").is_file():
        return path / "weights.pt"
    numbered = sorted(path.glob("n_images_*.pt"), key=lambda p: (len(p.name), p.name))
    return numbered[-1] if numbered else None


def _family(cfg: Config, source: Path) -> Family:
    if cfg.activation_fn_str == "relu":
        return families.Gated() if cfg.architecture == "gated" else families.ReLU()
    if cfg.architecture == "gated":
        raise CheckpointError(f"{source} is of a gated SAE with topk; relu needed")
    return families.TopK(k=parse(TopK, cfg.activation_fn_kwargs or {}, source).k)
