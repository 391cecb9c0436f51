"""Concept scores of images: SAE codes, pooled over an image's tokens, as a sparse matrix.

Shape key: n images, t tokens, s concepts (the latents of all SAEs, side by side).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch

from vision_sae.config import Frozen
from vision_sae.data import ImageSource
from vision_sae.data.decode import Decoded, decoded
from vision_sae.errors import ConfigError, DataError, MismatchError
from vision_sae.extract import activations_of, describe, read_of
from vision_sae.jobs.loading import load_sae
from vision_sae.matching import check_match
from vision_sae.model.adapter import Adapter, fingerprint
from vision_sae.model.hooks import inference
from vision_sae.provenance import Provenance, Tokens
from vision_sae.sae import SAE
from vision_sae.sparse.codes import Codes
from vision_sae.sparse.pooled import largest
from vision_sae.store import Store

Pool = Literal["max", "mean", "cls"]
Tell = Callable[[int], None]


class Part(Frozen):
    """Where some neighbouring concepts come from: one SAE's latents, and how they were pooled."""

    sae: str  # its folder, empty where there is none
    weights: str  # fingerprint of the SAE's own weights
    latents: int
    pool: Pool
    provenance: Provenance | None = None

    def differs(self, other: "Part") -> str | None:
        """What makes codes of the two incomparable, in words; None when nothing does."""
        if self.latents != other.latents:
            return f"{self.latents} latents against {other.latents}"
        if self.provenance and other.provenance:
            reason = self.provenance.differs(other.provenance)
            if reason:
                return reason
        if self.weights != other.weights:
            return f"the SAE {self.sae or 'in memory'} against {other.sae or 'one in memory'}"
        if self.pool != other.pool:
            return f"pooled by {self.pool} against {other.pool}"
        return None


class Reader(NamedTuple):
    """An SAE and where it reads; site and tokens are those that it was trained on."""

    sae: SAE
    folder: str
    site: str
    tokens: Tokens

    @classmethod
    def of(
        cls,
        sae: SAE,
        folder: Path | str = "",
        site: str | None = None,
        tokens: Tokens | None = None,
    ) -> "Reader":
        """Raises ConfigError when neither the SAE nor the caller knows the site."""
        known = sae.provenance
        if site is None and known is None:
            raise ConfigError(
                f"the SAE {folder or 'given'} does not say at which site it was trained: name it"
            )
        if known is not None and site not in (None, known.site):
            raise MismatchError(f"the SAE {folder} was trained at {known.site!r}, not at {site!r}")
        return cls(
            sae,
            str(folder),
            site or (known.site if known else ""),
            tokens or (known.tokens if known else "all"),
        )

    def part(self, pool: Pool, provenance: Provenance) -> Part:
        return Part(
            sae=self.folder,
            weights=fingerprint(self.sae),
            latents=self.sae.config.s,
            pool=pool,
            provenance=provenance,
        )


def readers(folders: Sequence[Path | str]) -> list[Reader]:
    """SAEs in folders, each at the site of its own record. Raises CheckpointError, ConfigError."""
    return [Reader.of(load_sae(folder), Path(folder).resolve()) for folder in folders]


@dataclass(frozen=True)
class Concepts:
    """Codes [n s] as a scipy csr_array, the images' keys, and what is known of each image."""

    codes: Any
    keys: list[str]
    about: list[dict[str, Any]]
    parts: tuple[Part, ...]
    data: str = ""
    skipped: tuple[str, ...] = ()  # images that could not be read, with the reason

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def blank(self) -> list[int]:
        """Images on which no concept is active: only the intercept speaks of them."""
        return [i for i, n in enumerate((abs(self.codes).sum(1) == 0).tolist()) if n]

    def take(self, images: Sequence[int]) -> "Concepts":
        rows = [int(i) for i in images]
        return replace(
            self,
            codes=self.codes[rows],
            keys=[self.keys[i] for i in rows],
            about=[self.about[i] for i in rows],
        )


def side_by_side(*some: Concepts) -> Concepts:
    """The concepts of several SAEs on the same images. Raises MismatchError for others."""
    from scipy.sparse import csr_array, hstack

    for other in some[1:]:
        if other.keys != some[0].keys:
            raise MismatchError(
                f"concepts of other images cannot stand side by side: {len(some[0])} images "
                f"against {len(other)}, {_first_other(some[0].keys, other.keys)}"
            )
    codes = csr_array(hstack([one.codes for one in some]))
    return replace(some[0], codes=codes, parts=tuple(p for one in some for p in one.parts))


def _first_other(mine: Sequence[str], theirs: Sequence[str]) -> str:
    pairs = zip(mine, theirs, strict=False)
    found = next(((a, b) for a, b in pairs if a != b), None)
    return f"first {found[0]!r} against {found[1]!r}" if found else "one is the start of the other"


def concepts_of_store(
    reader: Reader, store: Store, *, pool: Pool = "max", tell: Tell = lambda images: None
) -> Concepts:
    """Codes of every image of a store. Raises MismatchError, and DataError for a missing token."""
    check_match(reader.sae, store)
    check_pool(pool, store.index.prefix_tokens, store.index.tokens_per_image)
    rows = []
    with inference(reader.sae):
        for acts in store.in_order():
            rows.append(_coded(reader.sae, acts, pool))
            tell(len(acts))
    part = reader.part(pool, store.index.provenance)
    data, skipped = store.index.provenance.data, tuple(store.index.skipped)
    return Concepts(_stacked(rows), store.keys, store.about, (part,), data, skipped)


def concepts_of_images(
    adapter: Adapter,
    source: ImageSource,
    saes: Sequence[Reader],
    *,
    pool: Pool = "max",
    batch_size: int = 64,
    tell: Tell = lambda images: None,
) -> Concepts:
    """Codes of every image of a source, straight from the model: nothing is stored.

    One forward pass serves all SAEs that read the same kind of token. Images that cannot be read
    are named in `skipped`. Raises MismatchError for an SAE of another model or site, DataError.
    """
    if not saes:
        raise ConfigError("concepts are latents of SAEs: name at least one")
    groups: dict[Tokens, list[Reader]] = {}
    for reader in saes:
        groups.setdefault(reader.tokens, []).append(reader)
    found = [
        _one_pass(adapter, source, group, tokens, pool, batch_size, tell if not i else _quiet)
        for i, (tokens, group) in enumerate(groups.items())
    ]
    return found[0] if len(found) == 1 else side_by_side(*found)


def _quiet(images: int) -> None:
    pass


def _one_pass(
    adapter: Adapter,
    source: ImageSource,
    group: list[Reader],
    tokens: Tokens,
    pool: Pool,
    batch_size: int,
    tell: Tell,
) -> Concepts:
    from scipy.sparse import csr_array, hstack

    sites = list(dict.fromkeys(reader.site for reader in group))
    reading = read_of(adapter, source, sites, tokens, "float32")
    parts = _checked_parts(adapter, source, group, reading, pool)
    rows: list[list[Any]] = [[] for _ in group]
    keys, about, skipped = [], [], []
    for batch in _batches(source, batch_size):
        skipped += [f"{item.key}: {item.error}" for item in batch if item.image is None]
        good = [item for item in batch if item.image is not None]
        if good:
            acts = activations_of(adapter, adapter.prepare([i.image for i in good]), reading)
            for reader, mine in zip(group, rows, strict=True):
                with inference(reader.sae):
                    mine.append(_coded(reader.sae, acts[reader.site].float().cpu(), pool))
        keys += [item.key for item in good]
        about += [item.about for item in good]
        tell(len(batch))
    if not keys:
        raise DataError(f"no readable image in {source.name}")
    codes = csr_array(hstack([_stacked(mine) for mine in rows]))
    return Concepts(codes, keys, about, parts, source.name, tuple(skipped))


def _checked_parts(
    adapter: Adapter, source: ImageSource, group: list[Reader], reading: Any, pool: Pool
) -> tuple[Part, ...]:
    sites, parts = {site.name: site for site in reading.sites}, []
    for reader in group:
        index = describe(adapter, source, sites[reader.site], reading.tokens, reading.dtype)
        known = reader.sae.provenance
        if known and (reason := known.differs(index.provenance)):
            raise MismatchError(
                f"the SAE {reader.folder} does not belong to {adapter.name}: {reason}"
            )
        if reader.sae.config.d != index.width:
            raise MismatchError(
                f"the SAE {reader.folder} reads width {reader.sae.config.d}, "
                f"{reader.site} of {adapter.name} gives {index.width}"
            )
        check_pool(pool, index.prefix_tokens, index.tokens_per_image)
        parts.append(reader.part(pool, index.provenance))
    return tuple(parts)


def _batches(source: ImageSource, size: int) -> Iterator[list[Decoded]]:
    items = decoded(source)
    while batch := list(islice(items, size)):
        yield batch


# ---- pooling


def check_pool(pool: str, prefix: int, tokens: int) -> None:
    """Raises ConfigError for an unknown pool, DataError for a class token that is not there."""
    if pool not in get_args(Pool):
        raise ConfigError(f"pool must be {', '.join(get_args(Pool))}; got {pool!r}")
    if pool == "cls" and not prefix:
        raise DataError(
            f"these activations have no class token ({tokens} tokens per image); "
            "pool by max or mean"
        )


def _coded(sae: SAE, acts: torch.Tensor, pool: Pool) -> Any:
    b, t, d = acts.shape
    return pooled(sae.encode(acts.reshape(b * t, d)), t, pool)


def pooled(codes: Codes, t: int, pool: Pool) -> Any:
    """Codes of n t rows to a csr_array [n s]: the class token's (the first), the mean over an
    image's tokens, or each latent's value that is largest in size."""
    from scipy.sparse import csr_array

    codes = codes.without_zeros()
    shape = (len(codes) // t, codes.width)
    image, latent = codes.rows // t, codes.indices
    value = codes.values.detach().double()
    if pool == "cls":
        first = codes.rows % t == 0
        image, latent, value = image[first], latent[first], value[first]
    elif pool == "mean":
        value = value / t
    else:
        most = largest(codes, t)
        image, latent, value = most.rows, most.indices, most.values.detach().double()
    return csr_array((value.numpy(), (image.numpy(), latent.numpy())), shape=shape)


def _stacked(rows: list[Any]) -> Any:
    from scipy.sparse import csr_array, vstack

    return csr_array(vstack(rows))
