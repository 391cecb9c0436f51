"""SAELens (decoderesearch): a folder of `cfg.json` and `sae_weights.safetensors`, version 6 and
before.

Codes are SAELens': for a TopK SAE with `rescale_acts_by_decoder_norm` these are z times the norm of
the atom, so the norms are folded into the encoder while reading.
"""

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vision_sae import families
from vision_sae.errors import CheckpointError
from vision_sae.families import Family
from vision_sae.fold import fold_norms
from vision_sae.interop.reading import (
    Weights,
    assemble,
    parse,
    read_tensors,
    threshold_of,
)
from vision_sae.interop.saelens_config import Config, input_scale, read_config
from vision_sae.interop.saelens_writer import CONFIG, PROVENANCE, WEIGHTS, write
from vision_sae.nest import Prefixes
from vision_sae.provenance import Provenance
from vision_sae.sae import SAE

log = logging.getLogger(__name__)

ROWS = {"none": "none", "constant_norm_rescale": "constant_norm", "layer_norm": "layer_norm"}


def claims(path: Path) -> bool:
    return (path / WEIGHTS).is_file()


def read(path: Path, *, norm_factor: float | None = None) -> SAE:
    """An inference SAE or a training checkpoint; one on attention heads reads them merged.

    `norm_factor` is what inputs were multiplied by in training, for a checkpoint into whose
    weights it is not folded and beside which SAELens' own record of it is missing.
    """
    cfg = read_config(path / CONFIG)
    weights = read_tensors(path / WEIGHTS)
    _drop_ones(weights)
    parts = _Parts(cfg, weights)
    parts.scale(input_scale(path, cfg, norm_factor))
    sae = parts.build()
    weights.finish(f"an SAE of the architecture {cfg.architecture!r}")
    sae.provenance = _provenance(cfg.metadata, path)
    return sae


def _drop_ones(weights: Weights) -> None:
    """Old checkpoints hold a scaling_factor per latent, which matters when it is not 1 only."""
    factor = weights.tensors.pop("scaling_factor", None)
    if factor is not None and not bool(((factor.float() - 1).abs() < 1e-6).all()):
        raise CheckpointError(f"{weights.source} has a scaling_factor that is not 1; not supported")


class _Parts:
    """The tensors of a checkpoint, in our layout."""

    def __init__(self, cfg: Config, weights: Weights) -> None:
        self.cfg, self.weights = cfg, weights
        self.o = (cfg.d_out or cfg.d_in) if cfg.transcoder else cfg.d_in
        self.W_dec = weights.take("W_dec", cfg.d_sae, self.o)
        self.tied = cfg.architecture == "matching_pursuit"
        self.W_enc = self.W_dec if self.tied else weights.take("W_enc", cfg.d_in, cfg.d_sae).T
        self.b_dec = weights.take("b_dec", self.o)
        self.threshold = weights.take("topk_threshold") if cfg.batched else None

    def scale(self, factor: float) -> None:
        """Fold the factor of the inputs: codes stay as they are."""
        if factor == 1:
            return
        if self.cfg.transcoder or self.tied:
            raise CheckpointError(
                f"{self.weights.source}: the input scale of this architecture cannot be folded: "
                f"{self.cfg.architecture}"
            )
        self.W_enc, self.W_dec = self.W_enc * factor, self.W_dec / factor
        self.b_dec = self.b_dec / factor
        if self.threshold is not None and self.cfg.rescaled:
            self.threshold = self.threshold / factor

    def build(self) -> SAE:
        if self.cfg.transcoder:
            return self._transcode()
        if self.tied:
            return self._pursuit()
        s = self.cfg.d_sae
        if self.cfg.architecture == "gated":
            extra = {name: self.weights.take(name, s) for name in ("r_mag", "b_mag")}
            return self._assemble(families.Gated(), self.weights.take("b_gate", s), extra)
        b_enc = self.weights.take("b_enc", s)
        nest, rescale = self._nest(), self.cfg.rescaled
        sae = self._assemble(self._family(), b_enc, self._thresholds(), nest=nest, rescale=rescale)
        if rescale:  # their codes are z times the norm
            fold_norms(sae)
        return sae

    def _assemble(
        self, family: Family, b_enc: Tensor, extra: dict[str, Tensor], **options: Any
    ) -> SAE:
        usual = {
            "centred": self.cfg.apply_b_dec_to_input,
            "rows": ROWS.get(self.cfg.normalize_activations, "none"),
        }
        return assemble(
            family, self.W_enc, b_enc, self.W_dec, self.b_dec, extra=extra, **(usual | options)
        )

    def _thresholds(self) -> dict[str, Tensor]:
        if "jumprelu" in self.cfg.architecture:
            old = "log_threshold" in self.weights.tensors  # of training checkpoints before 6.5x
            found = self.weights.take("log_threshold" if old else "threshold", self.cfg.d_sae)
            return {"thresholds": found.exp() if old else found}
        if self.threshold is not None:
            return {"threshold": threshold_of(self.threshold, self.weights.source)}
        return {}

    def _family(self) -> Family:
        kind, k = self.cfg.architecture, round(self.cfg.k)
        if self.cfg.batched:  # there k may be a fraction; here it matters for training on only
            return families.BatchTopK(k=k)
        if kind in ("topk", "abstopk"):
            if k != self.cfg.k:
                raise CheckpointError(f"{self.weights.source}: k must be whole; got {self.cfg.k}")
            return families.TopK(k=k) if kind == "topk" else families.AbsTopK(k=k)
        return families.JumpReLU() if "jumprelu" in kind else families.ReLU()

    def _nest(self) -> Prefixes | None:
        if self.cfg.architecture != "matryoshka_batchtopk":
            return None
        shares = tuple(width / self.cfg.d_sae for width in self.cfg.matryoshka_widths)
        return Prefixes(shares=shares, reduction="sum")

    def _transcode(self) -> SAE:
        if self.cfg.normalize_activations in ("constant_norm_rescale", "layer_norm"):
            raise CheckpointError(
                f"{self.weights.source}: a transcoder with normalize_activations="
                f"{self.cfg.normalize_activations!r} is not supported: it is not undone"
            )
        extra, skip = self._thresholds(), "skip" in self.cfg.architecture
        if skip:
            extra["W_skip"] = self.weights.take("W_skip", self.o, self.cfg.d_in)
        b_enc = self.weights.take("b_enc", self.cfg.d_sae)
        options = {"d_out": self.o, "centred": False, "skip": skip}
        return self._assemble(self._family(), b_enc, extra, **options)

    def _pursuit(self) -> SAE:
        if not self.cfg.apply_b_dec_to_input:  # then SAELens adds b_dec nowhere
            self.b_dec = torch.zeros_like(self.b_dec)
        family = families.MatchingPursuit(
            k=self.cfg.max_iterations or self.cfg.d_in,
            residual=self.cfg.residual_threshold,
            stop_on_repeat=self.cfg.stop_on_duplicate_support,
        )
        b_enc = torch.zeros(self.cfg.d_sae)
        return self._assemble(family, b_enc, {}, tied=True, centred=True)


def _provenance(metadata: dict[str, Any], path: Path) -> Provenance | None:
    if PROVENANCE in metadata:
        return parse(Provenance, metadata[PROVENANCE], path)
    named = {key: value for key, value in metadata.items() if value not in (None, {}, [])}
    if named:
        log.info("%s: kept out of the SAE: %s", path, named)
    return None


__all__ = ["claims", "read", "write"]
