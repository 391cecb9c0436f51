"""One number about an SAE, or the reason why there is none."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Score:
    """A measured value; a NaN always carries its reason, so that nothing is silently zero.

    `n` counts what the value is a mean over (images, latents, labels: the measure's docstring
    says which). Raises ValueError for a NaN without a reason, or a reason beside a number.
    """

    value: float
    reason: str | None = None
    n: int | None = None

    def __post_init__(self) -> None:
        if math.isnan(self.value) != bool(self.reason):
            raise ValueError(f"a NaN needs a reason and a number none; got {self!r}")

    @property
    def defined(self) -> bool:
        return self.reason is None

    def as_dict(self) -> dict[str, Any]:
        """For JSON, which has no NaN."""
        return {"value": self.value if self.defined else None, "reason": self.reason, "n": self.n}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Score":
        if data["value"] is None:
            return undefined(str(data["reason"]), n=data["n"])
        return cls(float(data["value"]), n=data["n"])


Scores = dict[str, Score]


def undefined(reason: str, *, n: int | None = None) -> Score:
    """No value, and why."""
    return Score(math.nan, reason, n)


def scored(value: float, reason: str, *, n: int | None = None) -> Score:
    """A value, or where it came out as NaN the reason that then holds."""
    return undefined(reason, n=n) if math.isnan(value) else Score(float(value), n=n)
