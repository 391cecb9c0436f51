"""Activations on disk: safetensors shards and a JSON index."""

from vision_sae.store.index import Row, StoreIndex
from vision_sae.store.order import MemoryStore, Paired
from vision_sae.store.reader import Store
from vision_sae.store.writer import StoreWriter

__all__ = ["MemoryStore", "Paired", "Row", "Store", "StoreIndex", "StoreWriter"]
