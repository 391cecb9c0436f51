"""One pass over a store: what each latent fires on, image by image, and how strongly."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vision_sae.errors import DataError
from vision_sae.matching import check_match, check_paired
from vision_sae.measures.metrics import Metrics, Running
from vision_sae.model.hooks import inference
from vision_sae.sae import SAE
from vision_sae.sparse.codes import Codes
from vision_sae.store import Store


@dataclass(frozen=True)
class ImageCodes:
    """Per latent, the images it fires on, strongest first; an image's value is its largest token.

    Entries of latent i are `start[i]:start[i + 1]` of `image` and `value`.
    """

    start: Int[Tensor, " s_plus_1"]
    image: Int[Tensor, " e"]
    value: Float[Tensor, " e"]
    images: int

    def of(self, latent: int) -> tuple[Int[Tensor, " m"], Float[Tensor, " m"]]:
        """(images, values) of one latent, strongest first."""
        part = slice(int(self.start[latent]), int(self.start[latent + 1]))
        return self.image[part], self.value[part]

    @property
    def live(self) -> list[int]:
        """Latents that fire on any image."""
        found: list[int] = self.start.diff().nonzero()[:, 0].tolist()
        return found


@dataclass(frozen=True)
class Scan:
    """Everything one pass learns."""

    metrics: Metrics
    frequencies: Float[Tensor, " s"]
    means: Float[Tensor, " s"]  # mean activation where the latent fires
    image_fvu: Float[Tensor, " images"]
    codes: ImageCodes

    @property
    def live(self) -> list[int]:
        """Latents that fire at all."""
        return self.codes.live

    def frequency_histogram(self) -> dict[str, int]:
        """How many latents fire on which share of rows, by powers of ten."""
        edges = [0.0, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0]
        counts = {"never": int((self.frequencies == 0).sum())}
        for low, high in pairwise(edges):
            inside = (self.frequencies > low) & (self.frequencies <= high)
            counts[f"{low:g} to {high:g}"] = int(inside.sum())
        return counts


def scan(
    sae: SAE,
    store: Store,
    *,
    targets: Store | None = None,
    tell: Callable[[int], None] = lambda images: None,
) -> Scan:
    """Encode a whole store once; `targets` are what a transcoder writes. Raises MismatchError."""
    check_match(sae, store)
    running = Running(sae.config.width_out, sae.config.s)
    middle = (targets or store).sample(2**14).mean(0)
    sums = torch.zeros(sae.config.s, dtype=torch.float64)
    entries, fvus, done = [], [], 0
    with inference(sae):
        for acts, goal in _images(sae, store, targets):
            b, t, d = acts.shape
            y = goal.reshape(b * t, -1)
            codes, y_hat = sae(acts.reshape(-1, d))
            running.add(y, y_hat, codes)
            sums.index_add_(0, codes.indices, codes.values.double())
            error = (y - y_hat).square().view(b, -1).sum(1)
            fvus.append(error / (y - middle).square().view(b, -1).sum(1).clamp(min=1e-12))
            entries.append(_image_maxima(codes, t, done))
            done += b
            tell(b)
    latent, image, value = (torch.cat(part) for part in zip(*entries, strict=True))
    return Scan(
        metrics=running.result(sae),
        frequencies=running.frequencies(),
        means=sums / running.fired.clamp(min=1),
        image_fvu=torch.cat(fvus),
        codes=_sorted(latent, image, value, sae.config.s, done),
    )


def _images(
    sae: SAE, store: Store, targets: Store | None, size: int = 256
) -> Iterator[tuple[Float[Tensor, "b t d"], Float[Tensor, "b t o"]]]:
    """What the SAE reads and what it should write, some images at a time."""
    if sae.config.d_out is None:
        yield from ((acts, acts) for acts in store.in_order(size))
        return
    if targets is None:
        raise DataError("a transcoder is measured against targets, another store; pass them")
    check_paired(store, targets)
    for some in torch.arange(store.images).split(size):  # their shards end at other images
        yield store.acts(some.tolist()), targets.acts(some.tolist())


def image_codes(codes: Codes, tokens: int) -> ImageCodes:
    """Codes of image-major rows, `tokens` to an image, by latent."""
    latent, image, value = _image_maxima(codes, tokens, 0)
    return _sorted(latent, image, value, codes.width, len(codes) // tokens)


def _image_maxima(codes: Codes, tokens: int, first: int) -> tuple[Tensor, Tensor, Tensor]:
    """(latent, image, value) of every latent that fires on an image, its largest token."""
    codes = codes.without_zeros()
    image = codes.rows.div(tokens, rounding_mode="floor")
    unique, inverse = (image * codes.width + codes.indices).unique(return_inverse=True)
    value = torch.zeros(len(unique)).scatter_reduce(0, inverse, codes.values.abs(), "amax")
    return unique % codes.width, unique // codes.width + first, value


def _sorted(latent: Tensor, image: Tensor, value: Tensor, width: int, images: int) -> ImageCodes:
    by_value = value.argsort(descending=True, stable=True)
    order = by_value[latent[by_value].argsort(stable=True)]
    start = torch.zeros(width + 1, dtype=torch.int64)
    start[1:] = torch.bincount(latent, minlength=width).cumsum(0)
    return ImageCodes(start, image[order], value[order], images)
