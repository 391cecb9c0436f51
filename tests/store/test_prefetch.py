"""Prefetching changes when items are computed, never what comes out, and leaves no thread."""

import gc
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import count, islice
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vision_sae.errors import ConfigError
from vision_sae.store.prefetch import prefetched


def threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "prefetch"]


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    yield
    gc.collect()
    assert not threads()


def wait_for(true: Callable[[], bool]) -> None:
    until = time.monotonic() + 10
    while not true():
        assert time.monotonic() < until
        time.sleep(0.001)


@settings(deadline=None)
@given(st.lists(st.integers()), st.integers(1, 5), st.integers(0, 20))
def test_items_come_as_they_are(items: list[int], depth: int, taken: int) -> None:
    ahead = prefetched(lambda: iter(items), depth)
    assert list(islice(ahead, taken)) == items[:taken]
    assert list(ahead) == items[taken:]
    assert not threads()


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_so_many_items_are_computed_ahead_and_no_more(depth: int) -> None:
    made: list[int] = []
    ahead = prefetched(lambda: (made.append(i) or i for i in count()), depth)
    assert made == []  # nothing starts before the first is asked for
    for i in range(3):
        assert next(ahead) == i
        wait_for(lambda i=i: len(made) == i + 1 + depth)
    time.sleep(0.02)
    assert len(made) == 3 + depth
    ahead.close()


def test_items_are_computed_in_one_other_thread() -> None:
    ahead = prefetched(lambda: (threading.get_ident() for _ in range(5)))
    idents = set(ahead)
    assert len(idents) == 1 and threading.get_ident() not in idents


# ---- errors


@pytest.mark.parametrize("good", [0, 1, 4])
def test_an_error_comes_where_its_item_would_have(good: int) -> None:
    def items() -> Iterator[int]:
        yield from range(good)
        raise KeyError("broken")

    ahead = prefetched(items)
    assert list(islice(ahead, good)) == list(range(good))
    with pytest.raises(KeyError, match="broken"):
        next(ahead)
    assert not threads()
    with pytest.raises(StopIteration):
        next(ahead)


def test_an_error_of_the_factory_is_raised_too() -> None:
    def factory() -> Iterator[int]:
        raise OSError("no such store")

    with pytest.raises(OSError, match="no such store"):
        next(prefetched(factory))


def test_a_depth_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="a depth >= 1, not 0"):
        prefetched(lambda: iter([]), 0)


# ---- the end of the thread


def test_closing_ends_the_thread_and_the_iterator() -> None:
    closed: list[bool] = []

    def items() -> Iterator[int]:
        try:
            yield from count()
        finally:
            closed.append(True)

    ahead: Any = prefetched(items)
    next(ahead)
    assert len(threads()) == 1
    ahead.close()
    assert not threads() and closed == [True]
    ahead.close()


def test_one_that_was_never_read_starts_nothing() -> None:
    ahead: Any = prefetched(count)
    assert not threads()
    ahead.close()
    del ahead


def test_leaving_a_loop_ends_the_thread() -> None:
    for i in prefetched(count):
        if i == 3:
            break
    assert not threads()


def test_an_error_of_the_consumer_ends_the_thread() -> None:
    def consume() -> None:
        for i in prefetched(count):
            1 // (2 - i)

    with pytest.raises(ZeroDivisionError):
        consume()  # the error holds the frame, and with it the loop, until it is dropped
    gc.collect()
    assert not threads()


def test_garbage_collection_ends_the_thread() -> None:
    ahead: Any = prefetched(count)
    next(ahead)
    cycle: list[Any] = [ahead]
    cycle.append(cycle)
    del ahead, cycle
    gc.collect()
    assert not threads()


def test_the_thread_itself_may_collect_the_generator() -> None:
    """Garbage collection runs in whichever thread comes by; a thread cannot wait for itself."""
    held: list[Any] = []
    taken = threading.Event()

    def items() -> Iterator[int]:
        yield 0
        assert taken.wait(10)
        held.clear()
        yield 1

    held.append(prefetched(items))
    assert next(held[0]) == 0
    taken.set()
    wait_for(lambda: not held and not threads())


def test_an_interruption_while_waiting_is_raised_and_ends_the_thread() -> None:
    interrupted = threading.Event()

    def items() -> Iterator[int]:
        yield 0
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        interrupted.wait(0.2)
        yield 1

    ahead = prefetched(items)
    with pytest.raises(KeyboardInterrupt):
        list(ahead)
    assert not threads()


LEFT_OPEN = """
import torch
from itertools import repeat
from vision_sae.store.prefetch import prefetched
left = prefetched(lambda: (torch.randn(300, 300) @ torch.randn(300, 300) for _ in repeat(0)))
next(left)
{end}
"""


@pytest.mark.slow
@pytest.mark.parametrize(("end", "code"), [("", 0), ("raise SystemExit(3)", 3)])
def test_a_process_ends_with_one_left_open(end: str, code: int) -> None:
    script = LEFT_OPEN.format(end=end)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (code, "")
