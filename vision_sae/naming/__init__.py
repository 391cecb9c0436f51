"""Names for latents, from words embedded in the model's own text-image space."""

from vision_sae.naming.directions import latent_directions, top_images
from vision_sae.naming.names import UNNAMED, Name, name_latents
from vision_sae.naming.saved import NAMES, names_as_data, read_names, write_names
from vision_sae.naming.vocabulary import (
    PLAIN,
    Vocabulary,
    embed_words,
    frequent_words,
    read_vocabulary,
    vocabulary_of,
)

__all__ = [
    "NAMES",
    "PLAIN",
    "UNNAMED",
    "Name",
    "Vocabulary",
    "embed_words",
    "frequent_words",
    "latent_directions",
    "name_latents",
    "names_as_data",
    "read_names",
    "read_vocabulary",
    "top_images",
    "vocabulary_of",
    "write_names",
]
