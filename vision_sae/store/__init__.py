"""Activations on disk: safetensors shards and a JSON index."""

from vision_sae.store.index import Provenance, StoreIndex
from vision_sae.store.reader import Store
from vision_sae.store.writer import StoreWriter

__all__ = ["Provenance", "Store", "StoreIndex", "StoreWriter"]
