"""An index of codes on disk: for each latent the images it fires on, for each image its latents.

A query of k active latents reads k lists and nothing else, so it is exact and still reads a small
share of the entries (k = 32 of 8,192 latents: about 1 in 250). Approximate engines for dense
vectors would need [n s] numbers. Files are safetensors; opening an index reads them whole.

Shape key: n images, s latents, e entries.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from vision_sae.errors import DataError, OutputExists, UnknownName, claim_folder
from vision_sae.files import write_bytes, write_json
from vision_sae.measures.latents import image_codes
from vision_sae.model.hooks import inference
from vision_sae.recipes.search.query import Hit, Query
from vision_sae.sae import SAE
from vision_sae.sparse.codes import Codes, Support
from vision_sae.store import Store

FILE, FACTS = "codes.safetensors", "index.json"
IMAGES = 256  # that are encoded at a time
LISTED = 8  # latents that a hit names on each side


def build(
    sae: SAE,
    store: Store,
    out: Path | str,
    *,
    overwrite: bool = False,
    tell: Callable[[int], None] = lambda images: None,
) -> "Index":
    """Index a store's codes, an image's being its largest over tokens. Raises OutputExists."""
    parts = []
    tokens = store.index.tokens_per_image
    with inference(sae):
        for acts in store.in_order(IMAGES):
            codes = sae.encode(acts.flatten(0, 1))
            parts.append(_pooled(codes, tokens))
            tell(len(acts))
    return write(Codes.joined(parts), store.keys, out, overwrite=overwrite)


def _pooled(codes: Codes, tokens: int) -> Codes:
    """One row per image: the largest value of each latent."""
    found = image_codes(codes, tokens)
    latent = torch.repeat_interleave(torch.arange(codes.width), found.start.diff())
    order = (found.image * codes.width + latent).argsort()
    support = Support.of_rows(found.image[order], latent[order], found.images, codes.width)
    return Codes(found.value[order], support)


def write(
    codes: Codes, keys: Sequence[str], out: Path | str, *, overwrite: bool = False
) -> "Index":
    """Index codes of images with these keys. Raises DataError, OutputExists."""
    if len(codes) != len(keys):
        raise DataError(f"{len(keys)} keys for the codes of {len(codes)} images")
    out = claim_folder(Path(out), FACTS, overwrite=overwrite)
    if (out / FACTS).exists() and not overwrite:
        raise OutputExists(f"{out} holds an index; choose another folder or pass --overwrite")
    codes = codes.without_zeros()
    by = codes.support.by_latent
    tensors = {
        "row_start": codes.offsets,
        "row_latent": codes.indices.to(torch.int32),
        "row_value": codes.values.float(),
        "latent_start": by.start.long(),
        "latent_row": by.rows.to(torch.int32),
        "latent_value": codes.values.float()[by.order],
        "norm": _norms(codes),
    }
    write_bytes(out / FILE, to_bytes({name: t.contiguous() for name, t in tensors.items()}))
    write_json(out / FACTS, {"schema": 1, "latents": codes.width, "keys": list(keys)})
    return Index(out)


def _norms(codes: Codes) -> Float[Tensor, " n"]:
    squares = torch.zeros(len(codes)).index_add_(0, codes.rows, codes.values.float().square())
    return squares.sqrt()


class Index:
    """An index that `build` has written. Raises DataError for a folder that is none."""

    def __init__(self, folder: Path | str) -> None:
        import json

        self.folder = Path(folder)
        if not (self.folder / FACTS).is_file():
            raise DataError(f"{folder} is no index of codes: build one with `search build`")
        facts = json.loads((self.folder / FACTS).read_text("utf-8"))
        self.latents: int = facts["latents"]
        self.keys: list[str] = facts["keys"]
        self._arrays = _arrays_of(self.folder / FILE)

    def __len__(self) -> int:
        return len(self.keys)

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {key: number for number, key in enumerate(self.keys)}

    def number(self, key: str) -> int:
        """Which image has a key. Raises UnknownName, with near matches."""
        if key not in self._numbers:
            raise UnknownName("image", key, self.keys)
        return self._numbers[key]

    def codes_of(self, image: str | int) -> Query:
        """An image's codes, by key or number."""
        number = self.number(image) if isinstance(image, str) else image
        part = slice(*self._arrays["row_start"][number : number + 2])
        latents, values = self._arrays["row_latent"][part], self._arrays["row_value"][part]
        return Query(dict(zip(latents.tolist(), values.tolist(), strict=True)))

    def typical(self, latent: int) -> float:
        """The mean value of a latent where it fires; 0 where it never does."""
        values = self._arrays["latent_value"][self._list(latent)]
        return float(values.mean()) if len(values) else 0.0

    def nearest(self, query: Query, *, top: int = 10, leave_out: Sequence[int] = ()) -> list[Hit]:
        """The images with the largest cosine to a query, best first.

        Images that share no latent with it are no hits. Raises DataError for a query without codes
        or with latents that the index does not have.
        """
        if not query.codes:
            raise DataError("the query has no active latent, so nothing is near it")
        if wrong := [i for i in query.codes if not 0 <= i < self.latents]:
            raise DataError(f"latents {wrong} are not among the {self.latents} of this index")
        scores = self._scores(query)
        scores[list(leave_out)] = 0
        best = np.argpartition(scores, -min(top, len(scores)))[-top:]
        best = best[np.argsort(-scores[best], kind="stable")]
        return [self._hit(query, int(i), float(scores[i])) for i in best if scores[i] > 0]

    def _list(self, latent: int) -> slice:
        return slice(*self._arrays["latent_start"][latent : latent + 2])

    def _scores(self, query: Query) -> Any:
        """The cosine of every image's codes with the query's, [n]."""
        lists = [self._list(latent) for latent in query.codes]
        rows = np.concatenate([self._arrays["latent_row"][part] for part in lists])
        weights = np.concatenate(
            [
                self._arrays["latent_value"][part] * value
                for part, value in zip(lists, query.codes.values(), strict=True)
            ]
        )
        products = np.bincount(rows, weights, minlength=len(self))
        return products / np.maximum(self._arrays["norm"] * query.norm, 1e-12)

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


def _arrays_of(path: Path) -> dict[str, Any]:
    """The arrays of a safetensors file."""
    with safe_open(path, framework="np") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
