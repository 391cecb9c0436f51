"""Search images by the concepts of an SAE: exact nearest neighbours in code space.

from vision_sae.recipes.search import Index, build

build(sae, Store("acts/"), "index/")
index = Index("index/")
query = index.codes_of("noto/1f355").with_latent(17, 2.0)
for hit in index.nearest(query, top=10):
    print(hit.key, hit.score, hit.shared)
"""

from vision_sae.recipes.search.index import Index
from vision_sae.recipes.search.query import Hit, Query
from vision_sae.recipes.search.writing import build

__all__ = ["Hit", "Index", "Query", "build"]
