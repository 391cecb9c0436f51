"""The images behind a store's rows, from the source that they came from."""

from collections.abc import Callable, Collection, Iterator
from itertools import islice
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vision_sae.adapter import TextImageAdapter
from vision_sae.data import ImageSource, open_data
from vision_sae.errors import DataError
from vision_sae.store import Store


def picture_source(store: Store) -> ImageSource:
    """Where the pictures of a store are. Raises DataError for one of prompts or many timesteps."""
    where = store.index.provenance
    source = open_data(where.data, commands=False)
    if getattr(source, "gives", "images") != "images" or len(where.timesteps) > 1:
        raise DataError(
            f"{store.folder} has no picture for each row to show: it is of {source.name}, "
            f"{len(where.timesteps)} timesteps; pictures need images, at one timestep at most"
        )
    return source


def pictures(store: Store, images: Collection[int]) -> Iterator[tuple[int, Any]]:
    """(image, PIL picture) for some of a store's images, in order, one at a time.

    Raises DataError when the source has changed since.
    """
    source = picture_source(store)
    wanted = {store.positions[i]: i for i in images}
    if not wanted:
        return
    first = min(wanted)
    for position, item in enumerate(source.items(first), first):
        if position in wanted:
            i = wanted.pop(position)
            if item.key != store.keys[i]:
                raise DataError(
                    f"{source.name} has changed: image {position} was {store.keys[i]!r}, "
                    f"is {item.key!r}"
                )
            yield i, item.open()
        if not wanted:
            return
    raise DataError(f"{source.name} has changed: {len(wanted)} images are gone")


def embed_images(
    adapter: TextImageAdapter,
    store: Store,
    images: Collection[int],
    tell: Callable[[int], None] = lambda images: None,
) -> Float[Tensor, "images e"]:
    """Unit embeddings of the chosen images, as rows of a table of all; the others are NaN."""
    rows, table = pictures(store, images), torch.empty(0)
    while group := list(islice(rows, 64)):
        embedded = adapter.embed_images(adapter.prepare([picture for _, picture in group])).cpu()
        if not table.numel():
            table = torch.full((store.images, embedded.shape[1]), torch.nan)
        table[[i for i, _ in group]] = embedded
        tell(len(group))
    return table
