"""What is looked for: one image's codes, with concepts put in or taken out."""

from dataclasses import dataclass
from math import sqrt


@dataclass(frozen=True)
class Query:
    """Codes by latent; entries of 0 are left out."""

    codes: dict[int, float]

    def with_latent(self, latent: int, value: float) -> "Query":
        """The same with a latent at this value; 0 takes it out."""
        codes = {i: v for i, v in self.codes.items() if i != latent}
        return Query(codes | {latent: value} if value else codes)

    def without(self, *latents: int) -> "Query":
        return Query({i: v for i, v in self.codes.items() if i not in latents})

    @property
    def norm(self) -> float:
        return sqrt(sum(v * v for v in self.codes.values()))


@dataclass(frozen=True)
class Hit:
    """An image that was found.

    `score` is the cosine of the two codes. `shared`: latents of both, by how much each adds to the
    score, largest first. `only_query` and `only_hit`: the strongest latents of one alone.
    """

    key: str
    number: int
    score: float
    shared: list[tuple[int, float]]
    only_query: list[int]
    only_hit: list[int]
