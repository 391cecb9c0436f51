"""Freed memory is kept where the C library can be told so, and the environment does not differ."""

import ctypes
import subprocess
import sys
from types import SimpleNamespace

import pytest

from vision_sae import memory


def test_what_the_library_answers_is_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int]] = []
    answers = iter([1, 1, 1, 0])

    def mallopt(what: int, value: int) -> int:
        told.append((what, value))
        return next(answers)

    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(mallopt=mallopt))
    for name in memory.ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    assert memory.keep_freed() is True
    assert told == [(-1, 2**31 - 1), (-3, 2**25)]
    assert memory.keep_freed() is False


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in memory.ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace())
    assert memory.keep_freed() is False


def test_the_environment_has_the_last_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1000")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: pytest.fail("it was asked"))
    assert memory.keep_freed() is False


PROGRAM = """
import ctypes, resource
from vision_sae.memory import keep_freed

if not keep_freed():
    raise SystemExit("another C library")
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
for i in range(51):
    blocks = [ctypes.c_void_p(libc.malloc(2**24)) for _ in range(4)]
    for block in blocks:
        ctypes.memset(block, 1, 2**24)
    for block in blocks:
        libc.free(block)
    if i == 0:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_freed_blocks_are_not_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Page faults of four times 16 MB that are taken and freed fifty times."""
    for name in memory.ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    if "another C library" in done.stderr:
        pytest.skip("there is no glibc")
    assert int(done.stdout) < 1000
