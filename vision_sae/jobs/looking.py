"""The images that choose names and those that test them."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vision_sae import naming
from vision_sae.data import ImageSource
from vision_sae.errors import ConfigError
from vision_sae.jobs.pictures import embed_images, pictures
from vision_sae.measures import factors
from vision_sae.measures.latents import Scan
from vision_sae.model.adapter import TextImageAdapter
from vision_sae.naming import Seen
from vision_sae.sae import SAE
from vision_sae.store import Store

Tell = Callable[[str, int, int], None]  # told of what, how many more are done, of how many
SAMPLE = 2000  # images beside the top ones that choose names
FOLDS = 5  # one of so many parts of a store is held out


def look(
    model: TextImageAdapter,
    store: Store,
    found: Scan,
    *,
    sae: SAE | None,
    test: ImageSource | None,
    top: int,
    held_out: int,
    tell: Tell,
) -> tuple[Seen, Seen]:
    """(images that choose names, images that test them), with their embeddings.

    The first are each latent's `top` and a sample of the others. The second are the first
    `held_out` of `test`; or, without it, an even choice of a fifth of the store, by the hash of
    the images' keys, that then is not among the first.
    """
    if test is not None and sae is None:
        raise ConfigError("names are tested on other images through the SAE; pass sae=...")
    choosing, apart = _parts(store, whole=test is not None)
    apart = _evenly(apart, held_out)
    tops = naming.top_images(naming.restricted(found.codes, choosing), top)
    choosing = sorted({*(choosing[i] for i in tops), *_evenly(choosing, SAMPLE)})
    needed = sorted({*choosing, *apart})
    embedded = embed_images(model, store, needed, of(tell, "embed images", len(needed)))
    seen = partial(_seen, store, found, dict(zip(needed, embedded, strict=True)))
    named_on = seen(choosing, f"{len(choosing):,} images of {_data(store)}")
    if test is None or sae is None:
        return named_on, seen(apart, f"{len(apart):,} other images of {_data(store)}")
    total = min(held_out, len(test))
    told = of(tell, "test images", total)
    where = store.index.provenance
    return named_on, naming.see(model, sae, where, test, images=total, tell=told)


def _parts(store: Store, *, whole: bool) -> tuple[list[int], list[int]]:
    """Images that choose names, and those that are held out from that."""
    everything = list(range(store.images))
    if whole:
        return everything, []
    out = (factors.folds(store.keys, FOLDS) == 0).tolist()
    choosing = [i for i in everything if not out[i]]
    return (choosing, [i for i in everything if out[i]]) if choosing else (everything, [])


def _seen(
    store: Store, found: Scan, embedded: dict[int, Tensor], images: list[int], what: str
) -> Seen:
    codes = naming.restricted(found.codes, images)
    rows = [embedded[i] for i in images]
    width = len(next(iter(embedded.values())))
    table = torch.stack(rows) if rows else torch.empty(0, width)
    about = [store.about[i] for i in images]
    return Seen(what, codes, table, about, numbers=tuple(images))


def _data(store: Store) -> str:
    return store.index.provenance.data


def some_pictures(store: Store, seen: Seen, n: int) -> list[Any]:
    """A few of the pictures, evenly spaced."""
    return [picture for _, picture in pictures(store, _evenly(seen.numbers, n))]


def opened(store: Store, seen: Seen, images: list[int]) -> Iterator[tuple[int, Any]]:
    """(image, picture) of some of the images, by their places among those seen."""
    place = {number: image for image, number in enumerate(seen.numbers)}
    for number, picture in pictures(store, [seen.numbers[i] for i in images]):
        yield place[number], picture


def _evenly(items: Sequence[int], n: int) -> list[int]:
    """At most n of the items, evenly spaced."""
    if len(items) <= n:
        return list(items)
    return [items[i] for i in torch.linspace(0, len(items) - 1, n).long().tolist()]


def of(tell: Tell, what: str, total: int) -> Callable[[int], None]:
    """Tell of one part of the work."""
    return lambda more: tell(what, more, total)
