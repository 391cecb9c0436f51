"""The k-sparse autoencoder of sdxl-unbox, taken over by Concept Steerers: a folder of
`config.json` and `state_dict.pth`."""

from pathlib import Path

from pydantic import Field

from vision_sae import families
from vision_sae.config import Frozen
from vision_sae.interop.reading import assemble, parse, read_json, tensors_of, unpickle
from vision_sae.sae import SAE

CONFIG, WEIGHTS = "config.json", "state_dict.pth"


class Config(Frozen):
    """config.json; what follows k is about dead latents."""

    n_dirs_local: int = Field(ge=1)
    d_model: int = Field(ge=1)
    k: int = Field(ge=1)
    auxk: int | None = None
    dead_steps_threshold: int | None = None
    auxk_coef: float | None = None


def claims(path: Path) -> bool:
    return (path / CONFIG).is_file() and (path / WEIGHTS).is_file()


def read(path: Path) -> SAE:
    """A TopK SAE; codes are its own. The mean.pt that may lie beside it is left alone."""
    cfg = parse(Config, read_json(path / CONFIG), path / CONFIG)
    d, s = cfg.d_model, cfg.n_dirs_local
    state = unpickle(path / WEIGHTS)
    weights = tensors_of(state.get("state_dict", state), path / WEIGHTS)
    weights.ignore("stats_last_nonzero")
    W_enc, W_dec = weights.take("encoder.weight", s, d), weights.take("decoder.weight", d, s).T
    b_enc, b_dec = weights.take("latent_bias", s), weights.take("pre_bias", d)
    weights.finish("such a k-sparse autoencoder")
    return assemble(families.TopK(k=cfg.k), W_enc, b_enc, W_dec, b_dec)
