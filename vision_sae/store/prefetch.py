"""Compute the next batches in a background thread while the last one is being used."""

import atexit
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from threading import Event, Semaphore, Thread, current_thread
from typing import Generic, NamedTuple, TypeVar

from vision_sae.errors import ConfigError

T = TypeVar("T")


class _Made(NamedTuple, Generic[T]):
    """What the thread hands over: an item, the error that came in its place, or the end."""

    item: T | None = None
    error: BaseException | None = None
    ended: bool = False


def prefetched(iterator_factory: Callable[[], Iterator[T]], depth: int = 2) -> Iterator[T]:
    """The same items in the same order, up to `depth` of them computed ahead by one thread.

    An error of the iterator is raised where its item would have come. The thread starts with the
    first item and is gone when the items end, or this generator is closed, fails or is collected.
    Raises ConfigError for a depth below 1.
    """
    if depth < 1:
        raise ConfigError(f"prefetching needs a depth >= 1, not {depth}")
    return _consume(_Ahead(iterator_factory, depth))


def _consume(ahead: "_Ahead[T]") -> Iterator[T]:
    try:
        ahead.start()
        while True:
            made = ahead.made.get()
            if made.error is not None:
                raise made.error
            if made.ended:
                return
            ahead.room.release()
            yield made.item  # type: ignore[misc]
    finally:  # also when the consumer stops early or is interrupted
        ahead.stop()


class _Ahead(Generic[T]):
    """The thread, what it has made, and how much more it may make. It knows no consumer."""

    def __init__(self, iterator_factory: Callable[[], Iterator[T]], depth: int) -> None:
        self.factory = iterator_factory
        self.made: SimpleQueue[_Made[T]] = SimpleQueue()
        self.room = Semaphore(depth)
        self.stopped = Event()
        # a daemon, so that an iterator that nobody closes does not keep the process alive
        self.thread = Thread(target=self._run, name="prefetch", daemon=True)

    def start(self) -> None:
        atexit.register(self.stop)  # a daemon that dies inside torch would abort the process
        self.thread.start()

    def stop(self) -> None:
        """End the thread, after the item that it is at. May be called often, and by the thread."""
        atexit.unregister(self.stop)
        self.stopped.set()
        self.room.release()
        # the garbage collector may run this in the very thread that it ends
        if self.thread.is_alive() and self.thread is not current_thread():
            self.thread.join()

    def _run(self) -> None:
        try:
            items = self.factory()
            while self._has_room():
                self.made.put(_Made(next(items)))
        except StopIteration:
            self.made.put(_Made(ended=True))
        except BaseException as error:  # whatever it is, it is the consumer's
            self.made.put(_Made(error=error))

    def _has_room(self) -> bool:
        self.room.acquire()
        return not self.stopped.is_set()
