"""The facts as the page's scripts read them: light data for all latents, full data in chunks."""

import base64
from dataclasses import asdict
from typing import Any

import numpy as np

from vision_sae.naming import UNNAMED, Name
from vision_sae.report.facts import LatentFacts, Picture, ReportFacts
from vision_sae.report.sprites import Sprites
from vision_sae.report.summaries import curves, firing, image_errors

CHUNK = 128  # latents per file of details: 1 to 3 MB with 40 pictures and 14 x 14 heat each
STRIP = 6  # thumbnails of a latent in the list


def overview(facts: ReportFacts, sprites: Sprites) -> dict[str, Any]:
    """What is loaded at once: plots, the map, the list."""
    return {
        "title": facts.title,
        "firing": firing(facts.frequencies),
        "imageErrors": image_errors(facts.image_fvu),
        "training": curves(facts.training),
        "sprites": sprites._asdict(),
        "chunk": CHUNK,
        "timesteps": facts.timesteps,
        "noun": facts.noun,
        "latents": [light(latent) for latent in facts.latents],
    }


def images(facts: ReportFacts) -> list[list[Any]]:
    """Key and caption of each image; of a drawn one its seed too."""
    return [
        [image.key, image.caption] + ([] if image.seed is None else [image.seed])
        for image in facts.images
    ]


def light(latent: LatentFacts) -> dict[str, Any]:
    """A latent's row in the list and its point on the map."""
    return {
        "id": latent.id,
        "name": shown_name(latent.name),
        "score": latent.name.score if latent.name else None,
        "auroc": latent.name.auroc if latent.name else None,
        "frequency": latent.frequency,
        "maximum": latent.maximum,
        "detection": asdict(latent.detection) if latent.detection else None,
        "xy": list(latent.xy),
        "strip": [picture.image for picture in latent.top[:STRIP]],
    }


def shown_name(name: Name | None) -> str | None:
    """None for a latent that is unnamed."""
    return None if name is None or name.name == UNNAMED else name.name


def detail(latent: LatentFacts) -> dict[str, Any]:
    """What a latent's own page shows beyond its row in the list."""
    return {
        "named": asdict(latent.name) if latent.name else None,
        "imageShare": latent.image_share,
        "mean": latent.mean,
        "histogram": latent.histogram,
        "top": [_picture(p, latent.maximum) for p in latent.top],
        "quantiles": [
            [label, [_picture(p, latent.maximum) for p in pictures]]
            for label, pictures in latent.quantiles.items()
        ],
        "neighbours": latent.neighbours,
        "activity": asdict(latent.activity) if latent.activity else None,
    }


def _picture(picture: Picture, maximum: float) -> dict[str, Any]:
    heat = None if picture.heat is None else quantise(picture.heat, maximum)
    found = {"image": picture.image, "value": picture.value, "heat": heat}
    return found if picture.timestep is None else found | {"timestep": picture.timestep}


def quantise(heat: list[list[float]], maximum: float) -> list[Any] | None:
    """[rows, columns, base64 of one byte per patch]; 255 is the latent's maximum.

    None when there are no patches; NaN, negative values and a maximum that is not positive give 0.
    """
    values = np.nan_to_num(np.asarray(heat, dtype=np.float64))
    if values.ndim != 2 or not values.size:
        return None
    scale = maximum if maximum > 0 else np.inf
    levels = np.rint(np.clip(values / scale, 0, 1) * 255).astype(np.uint8)
    return [*levels.shape, base64.b64encode(levels.tobytes()).decode()]
