"""What every way to remove a concept looks like, with or without an SAE."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

Draw = Callable[..., Any]  # takes what the pipeline takes, and gives what it gives
Removal = Callable[[Any], AbstractContextManager[Draw]]  # pipeline -> with ... as draw


@runtime_checkable
class Method(Protocol):
    """Learns to remove concepts ("object:pizza") from a pipeline.

    removal = method.fit(pipe, ["object:pizza"])
    with removal(pipe) as draw:
        images = draw(prompt=["a pizza"]).images
    """

    @property
    def name(self) -> str: ...

    def fit(self, pipe: Any, concepts: Sequence[str]) -> Removal:
        """A removal of all these concepts together."""
        ...
