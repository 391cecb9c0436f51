"""The configs of SAELens: version 6, the flat ones before it, and the record of an input scale."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from vision_sae.config import Frozen
from vision_sae.errors import CheckpointError
from vision_sae.interop.reading import Loose, parse, read_json

SCALER = "activation_scaler.json"
TRANSCODERS = {
    "transcoder",
    "skip_transcoder",
    "jumprelu_transcoder",
    "jumprelu_skip_transcoder",
}
BATCHED = {"batchtopk", "matryoshka_batchtopk"}  # as they are during training
OF_TRAINING = {
    "decoder_init_norm", "l1_coefficient", "lp_norm", "l1_warm_up_steps", "use_sparse_activations",
    "aux_loss_coefficient", "topk_threshold_lr", "use_matryoshka_aux_loss",
    "jumprelu_init_threshold", "jumprelu_bandwidth", "jumprelu_sparsity_loss_mode",
    "l0_coefficient", "l0_warm_up_steps", "pre_act_loss_coefficient", "jumprelu_tanh_scale",
    "jumprelu_ste_to_input", "target_l0",
}  # fmt: skip


class Scaler(Loose):
    """The factor of the inputs, where it is not folded yet."""

    scaling_factor: float | None = Field(None, gt=0)


class Config(Frozen):
    """cfg.json of version 6, without what is about training only."""

    architecture: Literal[
        "standard", "gated", "topk", "abstopk", "jumprelu", "matching_pursuit", "batchtopk",
        "matryoshka_batchtopk", "transcoder", "skip_transcoder", "jumprelu_transcoder",
        "jumprelu_skip_transcoder",
    ]  # fmt: skip
    d_in: int = Field(ge=1)
    d_sae: int = Field(ge=1)
    d_out: int | None = Field(None, ge=1)
    dtype: str = "float32"
    device: str = "cpu"
    apply_b_dec_to_input: bool = True
    normalize_activations: Literal[
        "none", "constant_norm_rescale", "layer_norm", "expected_average_only_in"
    ] = "none"
    reshape_activations: Literal["none", "hook_z"] = "none"
    metadata: dict[str, Any] = {}
    k: float = Field(100, ge=1)
    rescale_acts_by_decoder_norm: bool | None = None
    matryoshka_widths: tuple[int, ...] = ()
    residual_threshold: float = Field(1e-2, ge=0)
    max_iterations: int | None = Field(None, ge=1)
    stop_on_duplicate_support: bool = True

    @property
    def transcoder(self) -> bool:
        return self.architecture in TRANSCODERS

    @property
    def batched(self) -> bool:
        return self.architecture in BATCHED

    @property
    def rescaled(self) -> bool:
        """Whether latents compete by z times their atom's norm (SAELens trains so by default)."""
        if self.architecture not in ("topk", "abstopk", *BATCHED):
            return False
        asked = self.rescale_acts_by_decoder_norm
        return self.batched if asked is None else asked


def read_config(path: Path) -> Config:
    """The config in the form of version 6. Raises CheckpointError."""
    found = read_json(path)
    if "metadata" not in found:
        found = _of_before_6(found, path)
    found = {key: value for key, value in found.items() if key not in OF_TRAINING}
    return parse(Config, found, path)


def _of_before_6(old: dict[str, Any], path: Path) -> dict[str, Any]:
    """Flat configs with other names; what is not known there is about training."""
    activation = old.get("activation_fn", old.get("activation_fn_str", "relu"))
    given = old.get("activation_fn_kwargs") or {}
    if activation not in ("relu", "topk") or not isinstance(given, dict):
        raise CheckpointError(f"{path} has the activation {activation!r} ({given}); not supported")
    if old.get("finetuning_scaling_factor"):
        raise CheckpointError(f"{path} has a finetuning scaling factor; this is not supported")
    norm = old.get("normalize_activations") or "none"
    cfg = {key: value for key, value in old.items() if key in Config.model_fields}
    cfg["normalize_activations"] = "expected_average_only_in" if norm is True else norm
    cfg["architecture"] = "topk" if activation == "topk" else old.get("architecture", "standard")
    hook = old.get("hook_name", old.get("hook_point"))
    meta = {"model_name": old.get("model_name"), "hook_name": hook}
    return cfg | {"metadata": meta} | ({"k": given.get("k")} if activation == "topk" else {})


def input_scale(path: Path, cfg: Config, given: float | None) -> float:
    """What inputs must be multiplied by. Raises CheckpointError when it is needed and not known."""
    if cfg.normalize_activations != "expected_average_only_in":
        return 1.0
    if given is not None:
        return given
    if (path / SCALER).is_file():
        found = parse(Scaler, read_json(path / SCALER), path / SCALER)
        if found.scaling_factor is not None:
            return found.scaling_factor
    raise CheckpointError(
        f"{path} was trained on inputs times a factor (expected_average_only_in) that is neither "
        f"folded into its weights nor stored beside them in {SCALER}: pass norm_factor"
    )
