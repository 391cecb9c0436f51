"""EleutherAI's sparsify and its fork in SAeUron: a folder of `cfg.json` and `sae.safetensors`.

SAeUron trains with a budget for a batch or a sample and uses k per row afterwards; so does this.
"""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from vision_sae import families
from vision_sae.config import Frozen
from vision_sae.errors import CheckpointError
from vision_sae.families import Family
from vision_sae.interop.reading import assemble, parse, read_json, read_tensors
from vision_sae.sae import SAE

CONFIG, WEIGHTS = "cfg.json", "sae.safetensors"


class Config(Frozen):
    """cfg.json; the last three are SAeUron's, `signed` is of old versions."""

    d_in: int = Field(ge=1)
    k: int = Field(ge=1)
    num_latents: int = Field(0, ge=0)
    expansion_factor: int = Field(32, ge=1)
    activation: Literal["topk", "groupmax"] = "topk"
    normalize_decoder: bool = True
    multi_topk: bool = False
    skip_connection: bool = False
    transcode: bool = False
    signed: bool = False
    batch_topk: bool = False
    sample_topk: bool = False
    input_unit_norm: bool = False


def claims(path: Path) -> bool:
    return (path / CONFIG).is_file() and (path / WEIGHTS).is_file()


def read(path: Path) -> SAE:
    """A sparse coder, skip transcoder or SAeUron SAE. Its codes are kept as they are."""
    cfg = parse(Config, read_json(path / CONFIG), path / CONFIG)
    if cfg.signed:
        raise CheckpointError(f"{path / CONFIG} has signed codes, which old versions had")
    weights = read_tensors(path / WEIGHTS)
    d, s = cfg.d_in, cfg.num_latents or cfg.d_in * cfg.expansion_factor
    W_enc, b_enc = weights.take("encoder.weight", s, d), weights.take("encoder.bias", s)
    W_dec, b_dec = weights.take("W_dec", s, d), weights.take("b_dec", d)
    extra = {}
    if cfg.skip_connection:
        extra["W_skip"] = weights.take("W_skip", d, d)
        if not cfg.transcode:  # our skip path is for what is not centred
            b_enc = b_enc - W_enc @ b_dec
    weights.finish("such a sparse coder")
    family, options = _family(cfg), _options(cfg)
    return assemble(family, W_enc, b_enc, W_dec, b_dec, extra=extra, **options)


def _options(cfg: Config) -> dict[str, Any]:
    if cfg.transcode or cfg.skip_connection:
        return {"d_out": cfg.d_in, "skip": cfg.skip_connection, "centred": False}
    return {"rows": "layer_norm" if cfg.input_unit_norm else "none"}


def _family(cfg: Config) -> Family:
    if cfg.activation == "groupmax":
        return families.GroupMax(k=cfg.k)
    return families.TopK(k=cfg.k, multi=4 if cfg.multi_topk else None)
