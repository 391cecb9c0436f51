"""Train one SAE for every sparsity and width, and read the hierarchy of what it found.

from vision_sae.recipes.matryoshka import *

sae = train_nested(Store("acts/"), "nested/", nest="both")
narrow = Level(sae, k=8, prefix=256)
points = progressive(sae, Store("validation/"))
bounds = prefixes_of(sae)
own = own_codes(prefix_codes(sae, Store("validation/"), bounds), bounds)
tree = hierarchy(own, sae.W_dec, bounds)
"""

from vision_sae.recipes.matryoshka.curves import Point, progressive
from vision_sae.recipes.matryoshka.depth import LevelDepth, depths
from vision_sae.recipes.matryoshka.hierarchy import Hierarchy, Link, hierarchy
from vision_sae.recipes.matryoshka.level import (
    Level,
    own_codes,
    prefix_codes,
    prefixes_of,
    sparsities_of,
)
from vision_sae.recipes.matryoshka.splitting import LevelSplit, split_levels
from vision_sae.recipes.matryoshka.train import nested_settings, train_nested
from vision_sae.recipes.matryoshka.tree_page import write_tree

__all__ = [
    "Hierarchy", "Level", "LevelDepth", "LevelSplit", "Link", "Point", "depths", "hierarchy",
    "nested_settings", "own_codes", "prefix_codes", "prefixes_of", "progressive", "sparsities_of",
    "split_levels", "train_nested", "write_tree",
]  # fmt: skip
