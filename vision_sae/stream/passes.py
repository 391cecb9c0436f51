"""Forward passes over some images, once for all sites that read them."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from threading import Lock
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from vision_sae.data import ImageSource
from vision_sae.data.decode import Batch, prepared
from vision_sae.errors import DataError
from vision_sae.extract import Reading, activations_of
from vision_sae.model.adapter import Adapter
from vision_sae.model.sites import Site
from vision_sae.store.index import DTYPES
from vision_sae.stream.plan import Share

log = logging.getLogger(__name__)


class Acts(NamedTuple):
    """What a site gives for some images."""

    rows: Float[Tensor, "b t d"]
    keys: list[str]


@dataclass
class Passes:
    """Runs a model on shares of a source; what the other sites of a pass gave waits for them.

    Each site has what is kept for it at most once, and only of the last two shares: a site that
    comes later has the model run again.
    """

    adapter: Adapter
    source: ImageSource
    reading: Reading
    batch_size: int
    skipped: dict[str, str] = field(default_factory=dict)
    _waiting: dict[Share, dict[str, Acts]] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)  # each site's stream asks from its own thread

    def site(self, name: str) -> Site:
        """One of those that are read."""
        return next(site for site in self.reading.sites if site.name == name)

    def acts(self, share: Share, site: str) -> Acts:
        """Raises DataError where no image can be read."""
        with self._lock:
            if site not in self._waiting.get(share, {}):
                self._waiting.pop(share, None)
                self._waiting[share] = self._run(share)
                for old in list(self._waiting)[:-2]:
                    del self._waiting[old]
            found = self._waiting[share].pop(site)
            if not self._waiting[share]:
                del self._waiting[share]
            return found

    def _run(self, share: Share) -> dict[str, Acts]:
        parts: dict[str, list[Tensor]] = {site.name: [] for site in self.reading.sites}
        good, keys = [], list[str]()
        for batch in self._batches_of(share):
            if batch.good:
                for name, acts in activations_of(self.adapter, batch.inputs, self.reading).items():
                    parts[name].append(acts.to("cpu", DTYPES[self.reading.dtype]))
                good += [len(keys) + i for i in batch.good]
            keys += [item.key for item in batch.items]
        return {name: Acts(self._whole(some, good, keys), keys) for name, some in parts.items()}

    def _batches_of(self, share: Share) -> Iterator[Batch]:
        source = self.source.reordered(share.seed)
        stop, prepare = share.first + share.images, self.adapter.prepare
        for batch in prepared(source, prepare, self.batch_size, start=share.first, stop=stop):
            for item in batch.items:
                if item.error is not None and item.key not in self.skipped:
                    self.skipped[item.key] = item.error
                    log.warning("skipped %s: %s", item.key, item.error)
            yield batch

    def _whole(self, parts: list[Tensor], good: list[int], keys: list[str]) -> Tensor:
        """All images' tokens; others of the share stand in for broken ones."""
        if not good:
            raise DataError(
                f"none of {len(keys)} images of a block can be read; the first: "
                f"{next(iter(self.skipped.items()))}"
            )
        acts, place = torch.cat(parts), {image: i for i, image in enumerate(good)}
        if len(good) == len(keys):
            return acts
        missing = [image for image in range(len(keys)) if image not in place]
        place |= {image: i % len(good) for i, image in enumerate(missing)}
        return acts[[place[image] for image in range(len(keys))]]
