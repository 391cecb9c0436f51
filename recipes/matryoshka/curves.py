"""What is gained with each further latent: FVU, cosine and zero-shot accuracy over k and prefix."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from vision_sae.jobs.splicing import Splicer
from vision_sae.matching import check_match
from vision_sae.measures.metrics import Running
from vision_sae.model.hooks import inference
from vision_sae.recipes.matryoshka.level import Level, prefixes_of, sparsities_of
from vision_sae.sae import SAE
from vision_sae.store import Store

IMAGES = 256  # that are encoded at a time


@dataclass(frozen=True)
class Point:
    """An SAE at one k and one prefix, None being its own.

    `accuracy` and `untouched` are zero-shot shares of right answers with the reconstruction in the
    place of the activations, and without; None where no model was given.
    """

    k: int | None
    prefix: int | None
    l0: float
    fvu: float
    cosine: float
    zeros: float
    accuracy: float | None = None
    untouched: float | None = None


def levels(
    sae: SAE, ks: Sequence[int] | None = None, prefixes: Sequence[int] | None = None
) -> list[Level]:
    """Every k at the whole width, then every shorter prefix at the largest k."""
    ks = sparsities_of(sae) if ks is None else list(ks)
    shorter = prefixes_of(sae)[:-1] if prefixes is None else list(prefixes)
    largest = max(ks, default=None)
    whole = [Level(sae, k) for k in ks] or [Level(sae)]
    return whole + [Level(sae, largest, m) for m in shorter]


def progressive(
    sae: SAE,
    store: Store,
    *,
    ks: Sequence[int] | None = None,
    prefixes: Sequence[int] | None = None,
    splicer: Splicer | None = None,
    tell: Callable[[int], None] = lambda levels: None,
) -> list[Point]:
    """The progressive curve of a nested SAE (MSAE, section 4), on all rows of a store.

    By default over what it was trained for: each k, and each prefix at the largest k; with none of
    either (`ks=(), prefixes=()`) one point, of the SAE as it is by itself. With a
    `vision_sae.jobs.splicing.Splicer`, zero-shot accuracy too. Raises MismatchError for another
    site's store, ConfigError for a k or prefix outside of the trained range.
    """
    check_match(sae, store)
    asked = levels(sae, ks, prefixes)
    return [point for level in asked for point in _measured(level, store, splicer, tell)]


def _measured(
    level: Level, store: Store, splicer: Splicer | None, tell: Callable[[int], None]
) -> Iterator[Point]:
    config = level.sae.config
    running = Running(config.width_out, config.s)
    with inference(level.sae):
        for acts in store.in_order(IMAGES):
            x = acts.flatten(0, 1)
            codes, x_hat = level(x)
            running.add(x, x_hat, codes)
    numbers = running.result()
    spliced = splicer(lambda x: level(x).x_hat) if splicer else None
    tell(1)
    yield Point(
        level.k,
        level.prefix,
        numbers.l0,
        numbers.fvu,
        numbers.cosine,
        1 - numbers.l0 / (level.prefix or config.s),
        spliced.spliced.accuracy if spliced else None,
        spliced.original.accuracy if spliced else None,
    )
