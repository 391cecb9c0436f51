"""Image sources: a folder, a class-per-folder tree, WebDataset shards, or a data set by name."""

from vision_sae.data.decode import Decoded, decoded
from vision_sae.data.source import ImageSource, Item, open_data

__all__ = ["Decoded", "ImageSource", "Item", "decoded", "open_data"]
