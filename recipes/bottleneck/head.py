"""The linear head: logits of sparse codes, and what each concept adds to them.

    logit = intercept + sum_i w_i f_i + centring,   centring = - sum_i w_i m_i

m is the mean code of the training images in a centred head and zero in another. Codes are never
centred in memory, as they would no longer be sparse.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from vision_sae.recipes.bottleneck.solver import Array

Share = Literal["absolute", "positive"]


@dataclass(frozen=True)
class Head:
    """Weights W [c s] as a scipy csr_array, intercepts b [c] and mean codes m [s]."""

    classes: list[Any]
    W: Any
    b: Array
    m: Array
    several: bool = False  # an image may have several labels
    temperature: float = 1.0

    @property
    def centring(self) -> Array:
        """Of each class [c]."""
        found: Array = -(self.W @ self.m)
        return found

    @property
    def used(self) -> list[int]:
        """Concepts with a weight in any class."""
        found: list[int] = np.unique(self.W.nonzero()[1]).tolist()
        return found

    def logits(self, X: Any) -> Array:
        """[n c] of codes X [n s]."""
        found: Array = (X @ self.W.T).toarray() + (self.b + self.centring)
        return found

    def probabilities(self, X: Any) -> Array:
        """[n c]; of several labels each by itself, else over the classes."""
        return probabilities(self.logits(X) / self.temperature, several=self.several)

    def contributions(self, X: Any, classes: Any) -> Any:
        """w_i f_i for one class of each row: a csr_array [n s]."""
        from scipy.sparse import csr_array

        found = csr_array(X.multiply(self.W[classes]))
        found.eliminate_zeros()
        return found

    def keep(self, concepts: Sequence[int]) -> "Head":
        """With the weights of these concepts only."""
        from scipy.sparse import csr_array

        kept = np.zeros(self.W.shape[1])
        kept[list(concepts)] = 1
        W = csr_array(self.W.multiply(kept[None, :]))
        W.eliminate_zeros()
        return replace(self, W=W)

    def drop(self, concepts: Sequence[int]) -> "Head":
        """Without the weights of these concepts: each counts as absent, in a centred head as at
        its mean."""
        return self.keep(sorted(set(range(self.W.shape[1])) - set(concepts)))


def probabilities(z: Array, *, several: bool) -> Array:
    if several:
        found: Array = 0.5 * (1 + np.tanh(0.5 * z))
        return found
    p = np.exp(z - z.max(1, keepdims=True))
    total: Array = p / p.sum(1, keepdims=True)
    return total


def reaching(contributions: Any, share: float = 0.95, of: Share = "absolute") -> Any:
    """How many concepts reach a share of the logit, for each row of contributions [n s].

    The smallest number whose absolute contributions sum to that share of the sum of all absolute
    contributions; with `positive`, of the positive ones alone (both in DN-CBM, Rao et al. 2024).
    Intercept and centring do not count. Zero where a row has no contribution.
    """
    rows = np.repeat(np.arange(contributions.shape[0]), np.diff(contributions.indptr))
    size = np.abs(contributions.data) if of == "absolute" else np.maximum(contributions.data, 0)
    order = np.lexsort((-size, rows))
    size, rows = size[order], rows[order]
    total = np.bincount(rows, size, minlength=contributions.shape[0])
    running = np.cumsum(size)
    before = np.concatenate([[0.0], np.cumsum(total)])[:-1]
    # an entry is needed while the ones before it fall short
    short = (running - size - before[rows]) < share * total[rows] - 1e-9 * total[rows]
    return np.bincount(rows[short & (size > 0)], minlength=contributions.shape[0])
