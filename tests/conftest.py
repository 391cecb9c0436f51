"""What all tests share."""

import os
import signal
from collections.abc import Iterator

import pytest
from hypothesis import settings

# the width of the terminal that tests are started from is none of theirs
os.environ.pop("COLUMNS", None)

# started in the background, a shell has children ignore Ctrl-C, and so would ours
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def no_sync() -> Iterator[None]:
    """Waiting for a disk proves nothing here, and takes most of the time on a busy machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda number: None)
        yield


# a busy machine must not fail a property: time is measured in benchmarks/
settings.register_profile("ours", deadline=None)
settings.load_profile("ours")
