"""What a report shows, as plain data: `gather` fills it, `page` draws it."""

from dataclasses import dataclass, field
from typing import Any, Literal

from vision_sae.measures.factors import Detection
from vision_sae.naming import Name


@dataclass(frozen=True)
class Picture:
    """One image that a latent fires on. `heat` is the latent's activation per patch, rows first."""

    image: int  # index into ReportFacts.images
    value: float  # the image's activation: the largest over its tokens
    heat: list[list[float]] | None = None
    timestep: int | None = None  # of a denoiser: where the latent is strongest on this image


@dataclass(frozen=True)
class Activity:
    """What a latent does at each of the report's timesteps."""

    share: list[float]  # of tokens on which it fires, in 0..1
    mean: list[float]  # activation where it fires; NaN where it does not


@dataclass(frozen=True)
class LatentFacts:
    """One latent's page. Frequencies are shares in 0..1."""

    id: int
    name: Name | None  # None: no names were looked for
    frequency: float  # share of tokens on which it fires
    image_share: float  # share of images with at least one token on which it fires
    mean: float  # mean activation where it fires
    maximum: float
    histogram: list[int]  # counts of positive activations in equal bins over 0..maximum
    top: list[Picture]
    quantiles: dict[str, list[Picture]]  # "50 to 75%" -> pictures
    neighbours: list[tuple[int, float]]  # (latent, cosine of decoder directions)
    detection: Detection | None
    xy: tuple[float, float]  # place on the map of the dictionary, each in 0..1
    activity: Activity | None = None  # of a denoiser that was read at several timesteps


@dataclass(frozen=True)
class ImageFacts:
    """A thumbnail (a small PIL image) and what is known of it."""

    key: str
    caption: str
    thumbnail: Any
    seed: int | None = None  # of the noise that it was drawn from


@dataclass(frozen=True)
class ReportFacts:
    """Everything that a report shows."""

    title: str
    provenance: dict[str, str]  # model, site, tokens, data, family, ...
    numbers: dict[str, float]  # metric name -> value, in the order to be shown
    frequencies: list[float]  # of all latents, dead ones 0
    image_fvu: list[float]  # reconstruction error of each image, over its own tokens
    training: list[dict[str, float]]  # rows of metrics.jsonl: step, loss, fvu, l0, dead, ...
    latents: list[LatentFacts]  # the live ones
    images: list[ImageFacts] = field(default_factory=list)
    timesteps: list[int] = field(default_factory=list)  # as they ran
    noun: Literal["image", "prompt"] = "image"  # what a row of the store is of
