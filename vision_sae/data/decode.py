"""Decode a source's images ahead of their use; prompts pass through in the same way."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

from vision_sae.data.source import ImageSource, Item
from vision_sae.errors import ConfigError, DataError


class Decoded(NamedTuple):
    """One image of a source; a broken one has no `image`, and `error` says why.

    Of a source that gives texts, `image` is the Prompt.
    """

    position: int
    key: str
    about: dict[str, Any]
    image: Any | None
    error: str | None


class _Pending(NamedTuple):
    position: int
    item: Item
    image: Future[Any]


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
    if start < 0 or workers < 1 or ahead < 1:
        raise ConfigError(
            "decoding needs start >= 0, workers >= 1 and ahead >= 1, "
            f"not start={start}, workers={workers}, ahead={ahead}"
        )
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    try:
        for pending in _submitted(pool, source, start, ahead):
            yield _result(pending, strict)
    finally:  # also when the consumer stops early
        pool.shutdown(cancel_futures=True)


def first_image(source: ImageSource) -> Any:
    """The first readable image. Raises DataError when there is none."""
    for item in decoded(source, workers=1, ahead=1):
        if item.image is not None:
            return item.image
    raise DataError(f"no readable image in {source.name}")


def _submitted(
    pool: ThreadPoolExecutor, source: ImageSource, start: int, ahead: int
) -> Iterator[_Pending]:
    waiting: deque[_Pending] = deque()
    try:
        for position, item in enumerate(source.items(start), start):
            waiting.append(_Pending(position, item, pool.submit(item.open)))
            if len(waiting) > ahead:
                yield waiting.popleft()
    except DataError:  # a shard that is cut off: the images before it come first
        yield from waiting
        raise
    yield from waiting


def _result(pending: _Pending, strict: bool) -> Decoded:
    position, item, future = pending
    try:
        return Decoded(position, item.key, item.about, future.result(), None)
    except DataError as error:
        if strict:
            raise
        return Decoded(position, item.key, item.about, None, str(error))
