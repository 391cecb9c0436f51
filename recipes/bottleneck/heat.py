"""Where in a picture a concept is: heat per patch for some (concept, image) of a bottleneck."""

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

from vision_sae.data import ImageSource
from vision_sae.extract import activations_of, read_of
from vision_sae.model.adapter import Adapter
from vision_sae.model.hooks import inference
from vision_sae.recipes.bottleneck.concepts import Reader
from vision_sae.report.heat import Heats, Wanted, of_pictures

SIZE = 32


def heats(
    adapter: Adapter,
    source: ImageSource,
    saes: Sequence[Reader],
    shown: Sequence[tuple[int, Any]],
    wanted: Wanted,
    tell: Callable[[int], None] = lambda images: None,
) -> Heats:
    """Of patches the concept's own activation, of class tokens what each patch adds to it; none for
    sites without patches. Concepts are numbered over all SAEs."""
    found: Heats = {}
    first = 0
    for number, reader in enumerate(saes):
        width = reader.sae.config.s
        mine = {
            image: {s - first: v for s, v in some.items() if first <= s < first + width}
            for image, some in wanted.items()
        }
        part = _of_reader(adapter, source, reader, shown, mine, tell if not number else _quiet)
        found |= {(s + first, image): heat for (s, image), heat in part.items()}
        first += width
    return found


def _quiet(images: int) -> None:
    pass


def _of_reader(
    adapter: Adapter,
    source: ImageSource,
    reader: Reader,
    shown: Sequence[tuple[int, Any]],
    wanted: Wanted,
    tell: Callable[[int], None],
) -> Heats:
    some = [(image, picture) for image, picture in shown if wanted.get(image)]
    if reader.tokens == "cls":
        return of_pictures(adapter, reader.sae, reader.site, some, wanted, tell)
    reading = read_of(adapter, source, [reader.site], reader.tokens, "float32")
    grid = reading.sites[0].grid
    if grid is None or reader.tokens == "pooled":
        return {}
    found: Heats = {}
    pairs = iter(some)
    patches = grid[0] * grid[1]
    while group := list(islice(pairs, SIZE)):
        batch = adapter.prepare([picture for _, picture in group])
        acts = activations_of(adapter, batch, reading)[reader.site].float().cpu()[:, -patches:]
        with inference(reader.sae):
            for (image, _), rows in zip(group, acts, strict=True):
                dense = reader.sae.encode(rows).to_dense()  # [patches s], of one image
                for s in wanted[image]:
                    found[s, image] = dense[:, s].view(*grid).tolist()
        tell(len(group))
    return found
