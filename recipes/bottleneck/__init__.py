"""Concept bottlenecks: classifiers that decide by an SAE's concepts, say why, and can be corrected.

from vision_sae.recipes.bottleneck import Bottleneck, concepts_of_images, read_labels, readers

train = concepts_of_images(adapter, open_data("emoji-canvas:train"), readers(["sae/"]))
cbm = Bottleneck().fit(train, read_labels("category", train.keys, train.about))
"""

from vision_sae.recipes.bottleneck.choice import Point
from vision_sae.recipes.bottleneck.concepts import (
    Concepts,
    Part,
    Reader,
    concepts_of_images,
    concepts_of_store,
    readers,
    side_by_side,
)
from vision_sae.recipes.bottleneck.edit import Association, Change, Edited
from vision_sae.recipes.bottleneck.estimator import Bottleneck
from vision_sae.recipes.bottleneck.explain import ClassConcept, Contribution, Explanation
from vision_sae.recipes.bottleneck.files import load, save
from vision_sae.recipes.bottleneck.head import Head, reaching
from vision_sae.recipes.bottleneck.labels import read_labels
from vision_sae.recipes.bottleneck.names import names_of

__all__ = [
    "Association", "Bottleneck", "Change", "ClassConcept", "Concepts", "Contribution", "Edited",
    "Explanation", "Head", "Part", "Point", "Reader", "concepts_of_images", "concepts_of_store",
    "load", "names_of", "reaching", "read_labels", "readers", "save", "side_by_side",
]  # fmt: skip
