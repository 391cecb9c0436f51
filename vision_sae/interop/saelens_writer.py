"""Write SAEs in the form of SAELens 6, for inference.

| ours | there |
| --- | --- |
| relu, panneal | standard, transcoder, skip_transcoder |
| jumprelu, batchtopk (its threshold for each latent) | jumprelu and its two transcoders |
| gated, topk, abstopk, mp | gated, topk, abstopk, matching_pursuit |

Codes there are ours, except those of a top-k family with `rescale`: SAELens reports z times the
norm of the atom, so the norms go into the encoder. AbsTopK and matching pursuit need a SAELens of
2026. GroupMax and families of other packages have no form there.
"""

import copy
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vision_sae.errors import CheckpointError, ConfigError, DataError, claim_folder
from vision_sae.families import MatchingPursuit
from vision_sae.files import write_json, write_tensors
from vision_sae.fold import fold_norms, thresholds
from vision_sae.sae import SAE

CONFIG, WEIGHTS, SPARSITY = "cfg.json", "sae_weights.safetensors", "sparsity.safetensors"
PROVENANCE = "vision_sae_provenance"  # our record inside their open metadata
FORM = "6.54.0"  # the version of SAELens whose form this is
ARCHITECTURES = {
    "relu": "standard",
    "panneal": "standard",
    "jumprelu": "jumprelu",
    "batchtopk": "jumprelu",
    "gated": "gated",
    "topk": "topk",
    "abstopk": "abstopk",
    "mp": "matching_pursuit",
}
ROWS = {"none": "none", "constant_norm": "constant_norm_rescale", "layer_norm": "layer_norm"}
NEVER = -10.0  # log10 of the frequency of a latent that never fires


def write(
    sae: SAE,
    folder: Path | str,
    *,
    frequency: Float[Tensor, " n"] | None = None,
    metadata: dict[str, Any] | None = None,
    overwrite: bool = False,
) -> None:
    """Write a folder that SAELens' `SAE.load_from_disk` reads.

    `frequency` is the share of rows in which each latent fires. Raises CheckpointError for an SAE
    that the form cannot hold, DataError for frequencies of other latents, OutputExists when the
    folder holds something else.
    """
    if frequency is not None and frequency.shape != (sae.config.s,):
        raise DataError(
            f"a frequency for each of {sae.config.s} latents is needed; "
            f"got {tuple(frequency.shape)}"
        )
    architecture = _architecture(sae)
    tensors, settings = _tensors(sae, architecture)
    target = claim_folder(Path(folder), overwrite=overwrite)
    write_tensors(target / WEIGHTS, {name: value.float() for name, value in tensors.items()})
    (target / SPARSITY).unlink(missing_ok=True)  # of an SAE that is overwritten
    if frequency is not None:
        log10 = frequency.float().clamp(min=10**NEVER).log10()
        write_tensors(target / SPARSITY, {"sparsity": log10})
    write_json(target / CONFIG, _config(sae, architecture, settings, metadata or {}))


def _architecture(sae: SAE) -> str:
    """SAELens' name for this kind of SAE. Raises CheckpointError when it has none."""
    config, kind = sae.config, sae.config.sparsity.kind
    if kind not in ARCHITECTURES:
        raise CheckpointError(
            f"the {kind} family has no form in SAELens; it holds {', '.join(ARCHITECTURES)}"
        )
    name = ARCHITECTURES[kind]
    if config.d_out is None:
        return name
    if name not in ("standard", "jumprelu"):
        raise CheckpointError(
            f"SAELens has no transcoder of the {kind} family; it has those of relu, panneal, "
            "jumprelu and batchtopk"
        )
    parts = [name if name == "jumprelu" else "", "skip" if config.skip else "", "transcoder"]
    return "_".join(part for part in parts if part)


@torch.no_grad()
def _tensors(sae: SAE, architecture: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors in SAELens' layout, and the settings of the architecture."""
    tensors = {"b_dec": sae.b_dec}
    settings: dict[str, Any] = {}
    if sae.W_skip is not None:
        tensors["W_skip"] = sae.W_skip
    if architecture in ("topk", "abstopk"):
        if sae.config.rescale:
            sae = copy.deepcopy(sae)
            fold_norms(sae)
        k = int(sae.config.sparsity.model_dump()["k"])
        settings = {"k": k, "rescale_acts_by_decoder_norm": False}
    elif architecture.startswith("jumprelu"):
        tensors["threshold"] = _threshold(sae)
    elif architecture == "matching_pursuit":
        return tensors | {"W_dec": sae.W_dec}, _pursuit(sae)
    if architecture == "gated":
        tensors |= {"b_gate": sae.b_enc, "b_mag": sae.b_mag, "r_mag": sae.r_mag}
    else:
        tensors["b_enc"] = sae.b_enc
    return tensors | {"W_enc": sae.W_enc.T, "W_dec": sae.W_dec}, settings


def _threshold(sae: SAE) -> Float[Tensor, " s"]:
    """On z, also where the threshold is compared with z times the atom's norm."""
    try:
        return thresholds(sae)
    except ConfigError as error:
        raise CheckpointError(f"SAELens needs a threshold: {error}") from None


def _pursuit(sae: SAE) -> dict[str, Any]:
    family = sae.config.sparsity
    if not (isinstance(family, MatchingPursuit) and family.rectified):
        raise CheckpointError(
            "SAELens rectifies the products of matching pursuit, this SAE does not"
        )
    return {
        "max_iterations": family.k,
        "residual_threshold": family.residual,
        "stop_on_duplicate_support": family.stop_on_repeat,
    }


def _config(
    sae: SAE, architecture: str, settings: dict[str, Any], metadata: dict[str, Any]
) -> dict[str, Any]:
    config = sae.config
    out = {"d_out": config.d_out} if config.d_out is not None else {}
    return {
        "architecture": architecture,
        "d_in": config.d,
        "d_sae": config.s,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": config.centred,
        "normalize_activations": ROWS[config.rows],
        "reshape_activations": "none",
        "metadata": _metadata(sae) | metadata,
        **out,
        **settings,
    }


def _metadata(sae: SAE) -> dict[str, Any]:
    """What is known of where the SAE comes from, under SAELens' names and ours."""
    found = sae.provenance
    known = {
        "sae_lens_version": FORM,
        "sae_lens_training_version": None,
        "training_architecture": sae.config.sparsity.kind,
        "training_architecture_details": sae.config.sparsity.model_dump(),
    }
    if found is None:
        return known
    names = {"model_name": found.model, "hook_name": found.site, "dataset_path": found.data}
    return known | names | {PROVENANCE: found.model_dump()}
