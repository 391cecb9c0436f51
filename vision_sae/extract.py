"""Images in, activations out: run a model over a source and store what one site gives."""

from collections.abc import Callable
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from vision_sae.adapter import Adapter, fingerprint, on_device
from vision_sae.data import ImageSource
from vision_sae.data.decode import Decoded, decoded, first_image
from vision_sae.errors import ConfigError
from vision_sae.hooks import capture, inference
from vision_sae.probing import probe_site
from vision_sae.provenance import Provenance, Tokens
from vision_sae.sites import Site, select_tokens, to_tokens
from vision_sae.store import Row, StoreIndex, StoreWriter
from vision_sae.store.index import DType

OnImages = Callable[[int], None]  # told how many more images are done


def extract(
    adapter: Adapter,
    source: ImageSource,
    site: str,
    folder: Path | str,
    *,
    tokens: Tokens = "all",
    batch_size: int = 64,
    dtype: DType = "float32",
    strict: bool = False,
    overwrite: bool = False,
    on_images: OnImages | None = None,
) -> StoreIndex:
    """Write the activations of every image of `source` at `site` to a store in `folder`.

    An interrupted run goes on where the last whole shard ends. Broken images are skipped, counted
    and named in the index, or raise DataError when `strict`. Raises UnknownName for a site that is
    not there, DataError for one that gives no tensor or for NaN, OutputExists and StoreError for a
    folder that holds something else.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size must be at least 1; got {batch_size}")
    where = probe_site(adapter, site, adapter.prepare([first_image(source)]))
    index = describe(adapter, source, where, tokens, dtype)
    writer = StoreWriter(Path(folder), index, overwrite=overwrite)
    tell = on_images or (lambda n: None)
    tell(writer.index.seen)
    if writer.index.complete:
        return writer.index
    items = decoded(source, start=writer.index.seen, strict=strict)
    while group := list(islice(items, batch_size)):
        write_batch(adapter, where, tokens, group, writer)
        tell(len(group))
    return writer.finish()


def describe(
    adapter: Adapter, source: ImageSource, site: Site, tokens: Tokens, dtype: DType
) -> StoreIndex:
    """What a store of these activations will say of itself."""
    empty = select_tokens(torch.zeros(1, site.tokens, site.width), site, tokens)
    per_patch = site.grid is not None and tokens in ("patches", "all")
    return StoreIndex(
        provenance=Provenance(
            model=adapter.name,
            fingerprint=fingerprint(adapter.model),
            site=site.name,
            tokens=tokens,
            data=source.name,
        ),
        dtype=dtype,
        width=site.width,
        tokens_per_image=empty.shape[1],
        prefix_tokens=site.prefix if tokens == "all" else int(tokens == "cls"),
        grid=site.grid if per_patch else None,
    )


def write_batch(
    adapter: Adapter, site: Site, tokens: Tokens, group: list[Decoded], writer: StoreWriter
) -> None:
    """One forward pass; broken images are counted and named."""
    for item in group:
        if item.image is None:
            writer.skip(Row(item.position, item.key, item.about), item.error or "unreadable")
    good = [item for item in group if item.image is not None]
    if good:
        acts = activations(adapter, adapter.prepare([item.image for item in good]), site)
        rows = [Row(item.position, item.key, item.about) for item in good]
        writer.add(select_tokens(acts, site, tokens), rows)


def activations(adapter: Adapter, batch: Tensor, site: Site) -> Tensor:
    """All tokens of a site for one prepared batch, [b t d], in float32; the forward stops there."""
    with inference(adapter.model), capture(adapter.model, [site.name], stop_early=True) as captured:
        adapter.run(on_device(adapter, batch))
    return to_tokens(captured[site.name], site).float()
