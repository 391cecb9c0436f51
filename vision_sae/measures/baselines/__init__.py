"""Dictionaries that are no SAEs, to set an SAE beside: each is fitted to rows and measured alike.

`fit("pca:16", rows)` is PCA of which each row keeps its 16 largest coefficients.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor

from vision_sae.errors import ConfigError, DataError, UnknownName
from vision_sae.measures.baselines.clusters import kmeans
from vision_sae.measures.baselines.linear import ica, neurons, pca, random
from vision_sae.measures.baselines.nonnegative import nmf, semi_nmf
from vision_sae.measures.baselines.supervised import supervised
from vision_sae.measures.case import Dictionary

Fit = Callable[..., Dictionary]  # (rows, k, latents, seed)
BASELINES: dict[str, Fit] = {
    "neurons": neurons,
    "pca": pca,
    "ica": ica,
    "nmf": nmf,
    "semi-nmf": semi_nmf,
    "kmeans": kmeans,
    "random": random,
}
SUPERVISED = "supervised"  # the one that is fitted to labels, too
NAMES = (*BASELINES, SUPERVISED)


class Wanted(NamedTuple):
    """A baseline by name, and how many latents each row keeps (None: all)."""

    name: str
    k: int | None


def parse(text: str) -> Wanted:
    """`pca` or `pca:16`. Raises UnknownName, ConfigError for a k that is no positive number."""
    name, colon, k = text.strip().partition(":")
    if name not in NAMES:
        raise UnknownName("baseline", name, NAMES)
    if not colon:
        return Wanted(name, None)
    if not k.isdecimal() or int(k) < 1:
        raise ConfigError(f"{text!r}: after the colon comes how many latents a row keeps, as in 16")
    return Wanted(name, int(k))


def fit(
    text: str,
    rows: Float[Tensor, "n d"],
    *,
    latents: int | None = None,
    seed: int = 0,
    about: Sequence[dict[str, Any]] = (),
) -> Dictionary:
    """Fit a baseline; `latents` (4 d by default) is the width of those that have a choice.

    `about` is what is known of the image of each row, which only `supervised` reads. Raises
    UnknownName, ConfigError; DataError for no rows or constant ones; MissingExtra without
    scikit-learn.
    """
    wanted = parse(text)
    if len(rows) < 2 or not bool((rows != rows[0]).any()):
        raise DataError(f"a baseline is fitted to rows that differ; got {len(rows)}")
    if wanted.name == SUPERVISED:
        return supervised(rows.float(), about, k=wanted.k)
    width = latents or 4 * rows.shape[1]
    return BASELINES[wanted.name](rows.float(), k=wanted.k, latents=width, seed=seed)
