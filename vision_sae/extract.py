"""Images or prompts in, activations out: run a model over a source and store what sites give."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vision_sae.data import ImageSource
from vision_sae.data.decode import Batch, first_image, prepared
from vision_sae.errors import ConfigError, DataError
from vision_sae.files import check_space
from vision_sae.model.adapter import Adapter, StepAdapter, fingerprint, on_device
from vision_sae.model.hooks import capture, inference
from vision_sae.model.probing import probe_sites
from vision_sae.model.sites import Site, select_tokens, to_tokens
from vision_sae.parallel import ALONE, Group
from vision_sae.provenance import Provenance, Tokens
from vision_sae.store import Row, StoreIndex, StoreWriter
from vision_sae.store.index import DType
from vision_sae.store.writer import SHARD_BYTES

OnImages = Callable[[int], None]  # told how many more images are done


@dataclass(frozen=True)
class Reading:
    """What is read of a model: which sites, which of their tokens, in which precision."""

    sites: tuple[Site, ...]
    tokens: Tokens = "all"
    dtype: DType = "float32"


def extract(
    adapter: Adapter, source: ImageSource, site: str, folder: Path | str, **options: Any
) -> StoreIndex:
    """Write the activations at one site to a store in `folder`; options are `extract_sites`'."""
    return extract_sites(adapter, source, {site: folder}, **options)[site]


def extract_sites(
    adapter: Adapter,
    source: ImageSource,
    folders: Mapping[str, Path | str],
    *,
    tokens: Tokens = "all",
    batch_size: int = 64,
    dtype: DType = "float32",
    strict: bool = False,
    overwrite: bool = False,
    on_images: OnImages | None = None,
    on_bytes: Callable[[int], None] | None = None,
    shard_bytes: int = SHARD_BYTES,
    group: Group = ALONE,
) -> dict[str, StoreIndex]:
    """Write the activations of every image of `source` at some sites, each to its own folder.

    One forward pass serves all sites. An interrupted run goes on with the shards that are missing;
    the processes of a `group` (from `parallel.join`) share them. Broken images are skipped, counted
    and named in the index, or raise DataError when `strict`. `on_bytes` is told, before the first
    one, how much there is to write at most. Raises UnknownName for a site that is
    not there, DataError for one that gives no tensor, for a source of the wrong kind or for NaN,
    OutputExists and StoreError for a folder that holds something else or a disk that is too small.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size must be at least 1; got {batch_size}")
    reading = read_of(adapter, source, list(folders), tokens, dtype)
    indexes = describe_all(adapter, source, reading, batch_size, shard_bytes)
    writers = []
    try:
        for site, folder in folders.items():
            writers.append(
                StoreWriter(Path(folder), indexes[site], overwrite=overwrite, group=group)
            )
        if group.rank == 0:
            needed = _check_space(writers)
            (on_bytes or (lambda n: None))(needed)
        _write_all(adapter, source, reading, writers, batch_size, strict, on_images)
        return {site: w.finish() for site, w in zip(folders, writers, strict=True)}
    finally:
        for writer in writers:
            writer.close()


def read_of(
    adapter: Adapter, source: ImageSource, sites: Sequence[str], tokens: Tokens, dtype: DType
) -> Reading:
    """Probe the sites. Raises as `extract_sites` does, before anything is written."""
    check_source(adapter, source)
    found = probe_sites(adapter, sites, adapter.prepare([first_image(source)]))
    return Reading(tuple(found[site] for site in sites), tokens, dtype)


def check_source(adapter: Adapter, source: ImageSource) -> None:
    """Raises DataError when a model that reads texts is given images, or the other way round."""
    gives = getattr(source, "gives", "images")
    if gives != adapter.reads:
        raise DataError(f"{adapter.name} reads {adapter.reads}, but {source.name} gives {gives}")


def describe_all(
    adapter: Adapter, source: ImageSource, reading: Reading, batch_size: int, shard_bytes: int
) -> dict[str, StoreIndex]:
    """Indexes of stores whose shards hold the same images: whole batches, where many fit."""
    found = {
        site.name: describe(adapter, source, site, reading.tokens, reading.dtype)
        for site in reading.sites
    }
    chunk = max(1, shard_bytes // max(index.image_bytes for index in found.values()))
    chunk -= chunk % batch_size if chunk >= batch_size else 0
    return {name: i.model_copy(update={"chunk": chunk}) for name, i in found.items()}


def describe(
    adapter: Adapter, source: ImageSource, site: Site, tokens: Tokens, dtype: DType
) -> StoreIndex:
    """What a store of these activations will say of itself."""
    empty = select_tokens(torch.zeros(1, site.tokens, site.width), site, tokens)
    per_patch = site.grid is not None and tokens in ("patches", "all")
    steps = adapter if isinstance(adapter, StepAdapter) else None
    timesteps = steps.timesteps if steps else ()
    half = steps.half if steps else "none"
    slots = max(1, len(timesteps)) * (2 if half == "both" else 1)
    return StoreIndex(
        provenance=Provenance(
            model=adapter.name,
            fingerprint=fingerprint(adapter.model),
            site=site.name,
            tokens=tokens,
            data=source.name,
            timesteps=timesteps,
            half=half,
            sampler=getattr(adapter, "sampler", ""),
        ),
        dtype=dtype,
        width=site.width,
        tokens_per_image=slots * empty.shape[1],
        prefix_tokens=0 if tokens in ("patches", "pooled") else min(site.prefix, empty.shape[1]),
        grid=site.grid if per_patch else None,
        source_images=len(source),
    )


def _write_all(
    adapter: Adapter,
    source: ImageSource,
    reading: Reading,
    writers: list[StoreWriter],
    batch_size: int,
    strict: bool,
    on_images: OnImages | None,
) -> None:
    group, chunk, total = writers[0].group, writers[0].index.chunk, len(source)
    missing = sorted({number for writer in writers for number in writer.missing})
    tell = on_images or (lambda n: None)
    ends = {number: min((number + 1) * chunk, total) for number in missing}
    tell(total - sum(end - number * chunk for number, end in ends.items()))
    for first, last in _stretches(_share(missing, group)):
        batches = prepared(
            source,
            adapter.prepare,
            batch_size,
            start=first * chunk,
            stop=ends[last],
            chunk=chunk,
            strict=strict,
        )
        for batch in batches:
            write_batch(adapter, reading, batch, writers)
            tell(len(batch.items))
        for writer in writers:
            writer.flush()


def _share(missing: list[int], group: Group) -> list[int]:
    """This process's part: neighbours, which are read in one go."""
    edges = [len(missing) * rank // group.size for rank in (group.rank, group.rank + 1)]
    return missing[edges[0] : edges[1]]


def _stretches(numbers: list[int]) -> Iterator[tuple[int, int]]:
    """The first and last of each run of neighbours."""
    for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
        members = [number for _, number in run]
        yield members[0], members[-1]


def _check_space(writers: list[StoreWriter]) -> int:
    """The bytes that are still to be written at most. Raises StoreError for a disk too small."""
    needed = 0
    for writer in writers:
        index = writer.index
        images = min(len(writer.missing) * index.chunk, index.source_images or 0)
        needed += images * index.image_bytes
    check_space(writers[0].folder, needed)
    return needed


def write_batch(
    adapter: Adapter, reading: Reading, batch: Batch, writers: list[StoreWriter]
) -> None:
    """One forward pass; broken images are counted and named."""
    rows = [Row(item.position, item.key, item.about) for item in batch.items]
    acts = activations_of(adapter, batch.inputs, reading) if batch.good else {}
    for writer, site in zip(writers, reading.sites, strict=True):
        for item, row in zip(batch.items, rows, strict=True):
            if item.error is not None:
                writer.skip(row, item.error)
        if acts:
            writer.add(acts[site.name], [rows[i] for i in batch.good])


def activations_of(adapter: Adapter, batch: Any, reading: Reading) -> dict[str, Tensor]:
    """The chosen tokens of each site for one prepared batch, [b t d], as the model gives them.

    Of a denoiser t runs over timesteps, then positions. The forward stops after the last site.
    """
    names = [site.name for site in reading.sites]
    steps = adapter if isinstance(adapter, StepAdapter) else None
    calls, keep = (steps.calls, steps.keep) if steps else (1, None)
    with (
        inference(adapter.model),
        capture(adapter.model, names, stop_early=True, calls=calls, keep=keep) as captured,
    ):
        adapter.run(on_device(adapter, batch))
    found = {}
    for site in reading.sites:
        outputs = captured.calls[site.name] if steps else [captured[site.name]]
        parts = [select_tokens(to_tokens(o, site), site, reading.tokens) for o in outputs]
        found[site.name] = steps.steps_of(parts).flatten(1, 2) if steps else parts[0]
    return found


def activations(adapter: Adapter, batch: Any, site: Site) -> Tensor:
    """All tokens of a site for one prepared batch, [b t d], in float32; the forward stops there."""
    return activations_of(adapter, batch, Reading((site,)))[site.name].float()
