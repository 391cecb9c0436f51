"""Sources of images and prompts: folders, shards, tables of prompts, data sets by name."""

from vision_sae.data.decode import Decoded, decoded
from vision_sae.data.indexed import IndexedSource
from vision_sae.data.prompts import Prompt, PromptSource
from vision_sae.data.source import Gives, ImageSource, Item, open_data

__all__ = [
    "Decoded",
    "Gives",
    "ImageSource",
    "IndexedSource",
    "Item",
    "Prompt",
    "PromptSource",
    "decoded",
    "open_data",
]
