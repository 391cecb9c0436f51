"""Decode a source's images ahead of their use; prompts pass through in the same way."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import groupby, islice
from typing import Any, NamedTuple, TypeVar

from vision_sae.data.source import ImageSource, Item
from vision_sae.errors import ConfigError, DataError

WORKERS = min(4, os.cpu_count() or 1)
Prepare = Callable[[Sequence[Any]], Any]  # images or prompts to a model's batch
Numbered = tuple[int, Item]  # the position of an item in its source
X = TypeVar("X")
Y = TypeVar("Y")


class Decoded(NamedTuple):
    """One image of a source; a broken one has no `image`, and `error` says why.

    Of a source that gives texts, `image` is the Prompt.
    """

    position: int
    key: str
    about: dict[str, Any]
    image: Any | None
    error: str | None


class Batch(NamedTuple):
    """Some neighbours; `good` are the places of those that could be read.

    `inputs` is what a model takes, of the good ones in their order; None without any.
    """

    items: list[Decoded]
    good: list[int]
    inputs: Any | None


def decoded(
    source: ImageSource,
    *,
    start: int = 0,
    strict: bool = False,
    workers: int = 2,
    ahead: int = 64,
) -> Iterator[Decoded]:
    """The images from position `start` on, in order, decoded by threads at most `ahead` early.

    A broken image comes with its error, or raises DataError when `strict`.
    """
    numbered = enumerate(source.items(start), start)
    return _ahead(partial(_decode, strict), numbered, start, workers, ahead)


def prepared(
    source: ImageSource,
    prepare: Prepare,
    size: int,
    *,
    start: int,
    stop: int,
    chunk: int | None = None,
    strict: bool = False,
) -> Iterator[Batch]:
    """The images from `start` to `stop` as batches of `size`, decoded and prepared by threads.

    A batch ends where `chunk` positions end, so that a resumed run makes the same ones, and
    where the guidance of prompts changes, of which a sampling has one. Images are prepared by
    several threads at once; texts by one, as tokenizers want it.
    """
    numbered = enumerate(islice(source.items(start), stop - start), start)
    work = partial(_prepare, prepare, strict)
    workers = 1 if getattr(source, "gives", "images") == "texts" else WORKERS
    return _ahead(work, _grouped(numbered, size, chunk), start, workers, workers)


def first_image(source: ImageSource) -> Any:
    """The first readable image. Raises DataError when there is none."""
    for item in decoded(source, workers=1, ahead=1):
        if item.image is not None:
            return item.image
    raise DataError(f"no readable image in {source.name}")


def _grouped(
    numbered: Iterator[Numbered], size: int, chunk: int | None
) -> Iterator[list[Numbered]]:
    def together(pair: Numbered) -> tuple[int, Any]:
        position, item = pair
        return position // chunk if chunk else 0, item.about.get("guidance")

    for _, run in groupby(numbered, together):
        while group := list(islice(run, size)):
            yield group


def _decode(strict: bool, pair: Numbered) -> Decoded:
    position, item = pair
    try:
        return Decoded(position, item.key, item.about, item.open(), None)
    except DataError as error:
        if strict:
            raise
        return Decoded(position, item.key, item.about, None, str(error))


def _prepare(prepare: Prepare, strict: bool, group: list[Numbered]) -> Batch:
    items = [_decode(strict, pair) for pair in group]
    good = [i for i, item in enumerate(items) if item.image is not None]
    inputs = prepare([items[i].image for i in good]) if good else None
    return Batch([item._replace(image=None) for item in items], good, inputs)


def _ahead(
    work: Callable[[X], Y], given: Iterable[X], start: int, workers: int, ahead: int
) -> Iterator[Y]:
    """`work` done by threads, in order, at most `ahead` of it early."""
    if start < 0 or workers < 1 or ahead < 1:
        raise ConfigError(
            "decoding needs start >= 0, workers >= 1 and ahead >= 1, "
            f"not start={start}, workers={workers}, ahead={ahead}"
        )
    with _threads(workers) as pool:
        for future in _submitted(pool, work, given, ahead):
            yield future.result()


@contextmanager
def _threads(workers: int) -> Iterator[ThreadPoolExecutor]:
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    try:
        yield pool
    finally:  # also when the consumer stops early
        pool.shutdown(cancel_futures=True)


def _submitted(
    pool: ThreadPoolExecutor, work: Callable[[X], Y], given: Iterable[X], ahead: int
) -> Iterator[Future[Y]]:
    waiting: deque[Future[Y]] = deque()
    try:
        for one in given:
            waiting.append(pool.submit(work, one))
            if len(waiting) > ahead:
                yield waiting.popleft()
    except DataError:  # a shard that is cut off: the images before it come first
        yield from waiting
        raise
    yield from waiting
