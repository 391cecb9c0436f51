"""Sparse autoencoders for vision and text-to-image models.

import vision_sae as vs

model = vs.load_adapter("emoji-clip")
vs.extract(model, vs.open_data("emoji-canvas"), "visual.transformer.resblocks.4", "acts")
sae = vs.train_store(vs.Store("acts"), "sae", family="topk", k=16, expansion=16)
"""

from vision_sae.checkpoint import load, save
from vision_sae.data import open_data
from vision_sae.extract import extract
from vision_sae.jobs import (
    NamingConfig,
    compare,
    detect_factors,
    extract_to,
    factor_report,
    known_names,
    load_sae,
    name_sae,
    open_vocabulary,
    run_suite,
    save_findings,
    splice_sae,
    train_store,
    train_sweep,
)
from vision_sae.measures.latents import scan
from vision_sae.measures.metrics import Metrics, evaluate
from vision_sae.model.adapter import Adapter, load_adapter
from vision_sae.model.hooks import capture, edit
from vision_sae.model.sites import Site
from vision_sae.report import write_report
from vision_sae.sae import SAE, SAEConfig
from vision_sae.sparse.codes import Codes
from vision_sae.store import MemoryStore, Store
from vision_sae.stream import Stream
from vision_sae.train import TrainConfig, train

__all__ = [
    "SAE",
    "Adapter",
    "Codes",
    "MemoryStore",
    "Metrics",
    "NamingConfig",
    "SAEConfig",
    "Site",
    "Store",
    "Stream",
    "TrainConfig",
    "capture",
    "compare",
    "detect_factors",
    "edit",
    "evaluate",
    "extract",
    "extract_to",
    "factor_report",
    "known_names",
    "load",
    "load_adapter",
    "load_sae",
    "name_sae",
    "open_data",
    "open_vocabulary",
    "run_suite",
    "save",
    "save_findings",
    "scan",
    "splice_sae",
    "train",
    "train_store",
    "train_sweep",
    "write_report",
]
