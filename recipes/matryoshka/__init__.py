"""Train one SAE for every sparsity and width, and read the hierarchy of what it found.

    from vision_sae.recipes.matryoshka import Level, hierarchy, progressive, train_nested

    sae = train_nested(Store("acts/"), "nested/", nest="both")
    narrow = Level(sae, k=8, prefix=256)
    points = progressive(sae, Store("validation/"))
    tree = hierarchy(sae, Store("validation/"))
"""

from vision_sae.recipes.matryoshka.curves import Point, progressive
from vision_sae.recipes.matryoshka.depth import LevelDepth, depths
from vision_sae.recipes.matryoshka.hierarchy import Hierarchy, Link, hierarchy
from vision_sae.recipes.matryoshka.level import Level, prefixes_of, sparsities_of
from vision_sae.recipes.matryoshka.train import nested_settings, train_nested

__all__ = [
    "Hierarchy", "Level", "LevelDepth", "Link", "Point", "depths", "hierarchy", "nested_settings",
    "prefixes_of", "progressive", "sparsities_of", "train_nested",
]  # fmt: skip
