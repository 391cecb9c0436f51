"""An index of codes on disk: for each latent the images it fires on, for each image its latents.

A query of k active latents reads k lists and nothing else, so it is exact and still reads a small
share of the entries (k = 32 of 8,192 latents: about 1 in 250). Approximate engines for dense
vectors would need [n s] numbers. The file is mapped into memory, so that opening an index reads
none of it and a query the lists that it needs: see benchmarks/search.py.

Shape key: n images, s latents, e entries.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor

from vision_sae.errors import DataError
from vision_sae.recipes.search.keys import Keys
from vision_sae.recipes.search.query import Hit, Query

FILE, FACTS, SCHEMA = "codes.safetensors", "index.json", 2
LISTED = 8  # latents that a hit names on each side


class Index:
    """An index that `build` has written. Raises DataError for a folder that is none."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        if not (self.folder / FACTS).is_file():
            raise DataError(f"{folder} is no index of codes: build one with `search build`")
        facts = json.loads((self.folder / FACTS).read_text("utf-8"))
        if facts.get("schema") != SCHEMA:
            raise DataError(f"{folder} is of another version: build it again with --overwrite")
        self.latents: int = facts["latents"]
        self.acts: str | None = facts["acts"]  # the store of its images
        self._arrays = _mapped(self.folder / FILE)
        self.keys = Keys(*(self._arrays[f"key_{part}"] for part in ("bytes", "start", "order")))

    def __len__(self) -> int:
        return len(self.keys)

    def codes_of(self, image: str | int) -> Query:
        """An image's codes, by key or number. Raises UnknownName, with near matches."""
        number = self.keys.number(image) if isinstance(image, str) else image
        part = self._part("row", number)
        latents, values = self._arrays["row_latent"][part], self._arrays["row_value"][part]
        return Query(dict(zip(latents.tolist(), values.tolist(), strict=True)))

    def typical(self, latent: int) -> float:
        """The mean value of a latent where it fires; 0 where it never does."""
        return float(self._arrays["typical"][latent])

    def nearest(self, query: Query, *, top: int = 10, leave_out: Sequence[int] = ()) -> list[Hit]:
        """The images with the largest cosine to a query, best first.

        Images that share no latent with it are no hits. Raises DataError for a query without codes
        or with latents that the index does not have.
        """
        if not query.codes:
            raise DataError("the query has no active latent, so nothing is near it")
        if wrong := [i for i in query.codes if not 0 <= i < self.latents]:
            raise DataError(f"latents {wrong} are not among the {self.latents} of this index")
        scores = self.scores(query)
        scores[list(leave_out)] = 0
        best = scores.topk(min(top, len(scores)))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [self._hit(query, number, score) for number, score in pairs if score > 0]

    def scores(self, query: Query) -> Float[Tensor, " n"]:
        """The cosine of every image's codes with the query's."""
        found = torch.zeros(len(self))
        for latent, value in query.codes.items():
            part = self._part("latent", latent)
            rows, shares = self._arrays["latent_row"][part], self._arrays["latent_share"][part]
            found.index_add_(0, rows, shares, alpha=value / query.norm)
        return found

    def _part(self, by: str, number: int) -> slice:
        """The entries of a row or a latent."""
        return slice(*self._arrays[f"{by}_start"][number : number + 2].tolist())

    def _hit(self, query: Query, number: int, score: float) -> Hit:
        own, length = self.codes_of(number).codes, float(self._arrays["norm"][number])
        scale = length * query.norm
        shared = {i: v * own[i] / scale for i, v in query.codes.items() if i in own}
        return Hit(
            self.keys[number],
            number,
            score,
            sorted(shared.items(), key=lambda pair: -pair[1])[:LISTED],
            _strongest({i: v for i, v in query.codes.items() if i not in own}),
            _strongest({i: v for i, v in own.items() if i not in query.codes}),
        )


def _strongest(codes: dict[int, float]) -> list[int]:
    return sorted(codes, key=lambda i: -abs(codes[i]))[:LISTED]


def _mapped(path: Path) -> dict[str, Tensor]:
    """The arrays of a safetensors file, read when they are used (numpy's reader would copy)."""
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
