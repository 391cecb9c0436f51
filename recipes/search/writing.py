"""Write an index: the codes of a store's images, by image and by latent, in one file."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from vision_sae.errors import DataError, claim_new
from vision_sae.files import write_json, write_tensors
from vision_sae.matching import check_match
from vision_sae.model.hooks import inference
from vision_sae.recipes.search.index import FACTS, FILE, SCHEMA, Index
from vision_sae.recipes.search.keys import key_arrays
from vision_sae.sae import SAE
from vision_sae.sparse import pooled
from vision_sae.sparse.codes import Codes
from vision_sae.store import Store

IMAGES = 256  # that are encoded at a time


def build(
    sae: SAE,
    store: Store,
    out: Path | str,
    *,
    overwrite: bool = False,
    tell: Callable[[int], None] = lambda images: None,
) -> Index:
    """Index a store's codes, an image's being the largest over its tokens.

    Raises MismatchError for another site's store, OutputExists.
    """
    check_match(sae, store)
    parts, tokens = [], store.index.tokens_per_image
    with inference(sae):
        for acts in store.in_order(IMAGES):
            parts.append(pooled.largest(sae.encode(acts.flatten(0, 1)), tokens))
            tell(len(acts))
    return write(Codes.joined(parts), store.keys, out, acts=store.folder, overwrite=overwrite)


def write(
    codes: Codes,
    keys: Sequence[str],
    out: Path | str,
    *,
    acts: Path | None = None,
    overwrite: bool = False,
) -> Index:
    """Index codes of images with these keys; `acts` is the store that they are of, for pictures.

    Raises DataError, OutputExists.
    """
    if len(codes) != len(keys):
        raise DataError(f"{len(keys)} keys for the codes of {len(codes)} images")
    out = claim_new(Path(out), FACTS, "an index", overwrite=overwrite)
    write_tensors(out / FILE, code_arrays(codes.without_zeros()) | key_arrays(keys))
    facts = {"schema": SCHEMA, "latents": codes.width, "acts": str(acts) if acts else None}
    write_json(out / FACTS, facts)
    return Index(out)


def code_arrays(codes: Codes) -> dict[str, Tensor]:
    """Entries by row and by latent; those by latent are divided by the norm of their row."""
    values, by, norm = codes.values.float(), codes.support.by_latent, norms(codes)
    counts = by.start.diff().clamp(min=1)
    sums = torch.zeros(codes.width).index_add_(0, codes.indices, values)
    return {
        "norm": norm,
        "typical": sums / counts,
        "row_start": codes.offsets,
        "row_latent": codes.indices.to(torch.int32),
        "row_value": values,
        "latent_start": by.start.long(),
        "latent_row": by.rows.to(torch.int32),
        "latent_share": values[by.order] / norm[by.rows],
    }


def norms(codes: Codes) -> Float[Tensor, " n"]:
    squares = torch.zeros(len(codes)).index_add_(0, codes.rows, codes.values.float().square())
    return squares.sqrt()
