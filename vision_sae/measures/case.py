"""What measures may read: a dictionary, and two sets of images that share none.

Shape key: n rows = images x tokens, d width, s latents.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vision_sae.errors import DataError
from vision_sae.measures.factors import Labels, labels_of
from vision_sae.measures.latents import ImageCodes, image_codes
from vision_sae.measures.splice import Spliced
from vision_sae.model.hooks import evaluation
from vision_sae.sae import Output
from vision_sae.sparse.codes import Codes
from vision_sae.store import Store

BLOCK = 4096  # rows that are encoded at a time


@runtime_checkable
class Dictionary(Protocol):
    """What the suite asks of an SAE; the baselines answer it too.

    `encode` gives sparse codes of rows, calling it also the reconstruction (Output). `W_dec` has an
    atom per latent.
    """

    @property
    def W_dec(self) -> Float[Tensor, "s d"]: ...

    def encode(self, x: Float[Tensor, "n d"]) -> Codes: ...

    def decode(self, codes: Codes) -> Float[Tensor, "n d"]: ...

    def __call__(self, x: Float[Tensor, "n d"]) -> Output: ...


class Layout(NamedTuple):
    """How an image's tokens lie: the first `prefix` are no patches, the others fill `grid`."""

    tokens: int = 1
    prefix: int = 0
    grid: tuple[int, int] | None = None


@dataclass(frozen=True, eq=False)
class Sample:
    """The activations of some images, image-major, and what is known of each image.

    `embeddings` are unit vectors of the same images by another model, where there is one.
    """

    rows: Float[Tensor, "n d"]
    layout: Layout = Layout()
    keys: Sequence[str] = ()
    about: Sequence[dict[str, Any]] = ()
    embeddings: Float[Tensor, "images e"] | None = None

    @property
    def images(self) -> int:
        return len(self.rows) // self.layout.tokens

    @cached_property
    def image_of_row(self) -> Int[Tensor, " n"]:
        return torch.arange(self.images).repeat_interleave(self.layout.tokens)

    @cached_property
    def pooled(self) -> Float[Tensor, "images d"]:
        """Each image's mean over its tokens."""
        return self.rows.view(self.images, self.layout.tokens, -1).mean(1)

    @cached_property
    def labels(self) -> Labels:
        """Every (factor, value) that at least five images have, but not all."""
        return labels_of(self.about)

    def values(self, label: str) -> list[str]:
        """Every value that a label has here, sorted."""
        return sorted({str(known[label]) for known in self.about if label in known})

    def classes(self, label: str, values: Sequence[str] | None = None) -> Int[Tensor, " images"]:
        """Each image's class: where its value stands in `values`, by default its own; -1 if not."""
        number = {value: i for i, value in enumerate(values or self.values(label))}
        of = [number.get(str(k[label]), -1) if label in k else -1 for k in self.about]
        return torch.tensor(of, dtype=torch.int64)


def sample_of(
    store: Store, images: Sequence[int], embeddings: Float[Tensor, "all e"] | None = None
) -> Sample:
    """Some images of a store, by number; `embeddings` has a row per image of the store."""
    index, chosen = store.index, list(images)
    if embeddings is not None and len(embeddings) != store.images:
        raise DataError(f"{len(embeddings)} embeddings for the {store.images} images of a store")
    return Sample(
        rows=store.acts(chosen).flatten(0, 1),
        layout=Layout(index.tokens_per_image, index.prefix_tokens, index.grid),
        keys=[store.keys[i] for i in chosen],
        about=[store.about[i] for i in chosen],
        embeddings=None if embeddings is None else embeddings[chosen],
    )


def _evaluated(dictionary: Dictionary) -> AbstractContextManager[None]:
    return evaluation(dictionary) if isinstance(dictionary, nn.Module) else nullcontext()


class Encoding:
    """What a dictionary makes of a sample; each part is computed once, when it is first asked for.

    codes: of every row. x_hat: the reconstruction [n d]. image_codes: per latent its images,
    strongest first, an image's value being its largest |code| over tokens.
    """

    def __init__(self, dictionary: Dictionary, sample: Sample) -> None:
        self.dictionary, self.sample = dictionary, sample

    @cached_property
    def _both(self) -> tuple[Codes, Tensor]:
        parts = []
        with _evaluated(self.dictionary), torch.no_grad():
            for rows in self.sample.rows.split(BLOCK):
                codes, x_hat = self.dictionary(rows)
                parts.append((codes.without_zeros(), x_hat))
        return Codes.joined([codes for codes, _ in parts]), torch.cat([x_hat for _, x_hat in parts])

    @property
    def codes(self) -> Codes:
        return self._both[0]

    @property
    def x_hat(self) -> Float[Tensor, "n d"]:
        return self._both[1]

    @cached_property
    def image_codes(self) -> ImageCodes:
        return image_codes(self.codes, self.sample.layout.tokens)

    @cached_property
    def pooled_hat(self) -> Float[Tensor, "images d"]:
        """Each image's mean reconstruction over its tokens."""
        return self.x_hat.view(self.sample.images, self.sample.layout.tokens, -1).mean(1)

    def pooled(self, how: str = "max") -> Float[Tensor, "images s"]:
        """Each image's codes over its tokens, `max` of |code| or `mean`; dense, so mind its size.

        Not kept: a measure that needs blocks of latents reads `image_codes`.
        """
        images, tokens = self.sample.images, self.sample.layout.tokens
        codes = self.codes
        out = torch.zeros(images * codes.width)
        place = codes.rows.div(tokens, rounding_mode="floor") * codes.width + codes.indices
        if how == "max":
            out.scatter_reduce_(0, place, codes.values.abs(), "amax")
        else:
            out.index_add_(0, place, codes.values / tokens)
        return out.view(images, codes.width)


@dataclass(frozen=True, eq=False)
class Case:
    """A dictionary to be measured, on images `test`; what must be fitted is fitted on `fit`.

    `seeds` are the same dictionary trained with other seeds. `label` is what measures of classes
    take for the class of an image. `spliced` is what its model does with the reconstruction. Scores
    are of `test` unless a measure says otherwise.
    """

    name: str
    dictionary: Dictionary
    fit: Sample
    test: Sample
    seeds: Sequence[Dictionary] = ()
    label: str | None = None
    splicing: Callable[[], Spliced] | None = None  # where a model is at hand

    @cached_property
    def on_test(self) -> Encoding:
        return Encoding(self.dictionary, self.test)

    @cached_property
    def on_fit(self) -> Encoding:
        return Encoding(self.dictionary, self.fit)

    @cached_property
    def spliced(self) -> Spliced | None:
        return self.splicing() if self.splicing else None
