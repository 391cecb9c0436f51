"""Which latents a concept is, how strong they usually are, and random ones that are alike."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vision_sae.errors import ConfigError, DataError, UnknownName
from vision_sae.measures.factors import auroc
from vision_sae.measures.latents import Scan
from vision_sae.naming import Name
from vision_sae.sae import SAE

LEAST = 5  # images with a value and without it


@dataclass(frozen=True)
class Concept:
    """Latents by their typical value, the mean where they fire; `auroc` of the first, if chosen."""

    text: str
    values: dict[int, float]
    auroc: float | None = None


def concept_of(
    text: str,
    found: Scan,
    about: Sequence[Mapping[str, Any]],
    names: Mapping[int, Name] | None = None,
    *,
    top: int = 1,
) -> Concept:
    """A latent's number, a name of latents, or KEY:VALUE of the images' labels.

    For KEY:VALUE the `top` latents of largest AUROC, for telling the images with that value from
    those with another value of the same key. Raises UnknownName, ConfigError for a latent that
    never fires, DataError for too few images.
    """
    area, known = None, {name.name for name in (names or {}).values()}
    if text.strip().isdigit():
        latents = [int(text)]
    elif text in known:
        latents = [i for i, name in (names or {}).items() if name.name == text]
    elif ":" in text:
        key, _, value = text.partition(":")
        latents, area = _detecting(key, value, found, about, top)
    else:
        raise UnknownName("concept", text, known)
    if silent := sorted(set(latents) - set(found.live)):
        raise ConfigError(
            f"concept {text!r}: latents {silent} fire on none of these images, so how strong they "
            "usually are is not known"
        )
    return Concept(text, {i: float(found.means[i]) for i in latents}, area)


def _detecting(
    key: str, value: str, found: Scan, about: Sequence[Mapping[str, Any]], top: int
) -> tuple[list[int], float]:
    values = [_said(row.get(key)) for row in about]
    have = torch.tensor([bool(one) for one in values])
    yes = torch.tensor([value in one for one in values])[have]
    if not bool(have.any()):
        raise UnknownName("label", key, {key for row in about for key in row})
    if not bool(yes.any()):
        raise UnknownName(key, value, {one for said in values for one in said})
    if min(int(yes.sum()), int((~yes).sum())) < LEAST:
        raise DataError(
            f"{key} is {value} on {int(yes.sum())} images and something else on "
            f"{int((~yes).sum())}; {LEAST} of each are needed"
        )
    areas: dict[int, float] = {}
    for latent in found.live:
        scores = torch.zeros(len(about))
        images, strength = found.codes.of(latent)
        scores[images] = strength.float()
        areas[latent] = auroc(scores[have], yes)
    best = sorted(areas, key=lambda i: -areas[i])[:top]
    return best, areas[best[0]]


def _said(value: Any) -> list[str]:
    if value is None:
        return []
    return [str(one) for one in value] if isinstance(value, list | tuple) else [str(value)]


def controls(
    concept: Concept, sae: SAE, found: Scan, count: int, seed: int = 0
) -> list[dict[int, float]]:
    """Random live latents as frequent and as strong as those of the concept, as many per draw.

    Each is drawn from the 2 * `count` nearest in the logarithms of frequency and of strength (the
    typical value times the norm of the atom). Raises DataError where too few others are live.
    """
    others = [i for i in found.live if i not in concept.values]
    if len(others) < max(2, len(concept.values)):
        raise DataError(f"{len(others)} other latents are live, too few for random controls")
    place = _place(sae, found)
    generator = torch.Generator().manual_seed(seed)
    draws: list[dict[int, float]] = [{} for _ in range(min(count, len(others)))]
    for latent in concept.values:
        far = (place[others] - place[latent]).square().sum(1)
        pool = [others[int(i)] for i in far.argsort()[: 2 * count]]
        order = torch.randperm(len(pool), generator=generator).tolist()
        for number, draw in enumerate(draws):
            free = [pool[i] for i in order[number:] + order[:number] if pool[i] not in draw]
            if free:
                draw[free[0]] = float(found.means[free[0]])
    return draws


def _place(sae: SAE, found: Scan) -> Float[Tensor, "s 2"]:
    """(log frequency, log strength) in units of their deviation over live latents."""
    strength = found.means.float() * sae.W_dec.detach().norm(dim=1)
    logs = torch.stack([found.frequencies.float(), strength], 1).clamp(min=1e-12).log()
    deviation: Tensor = logs[found.live].std(0, correction=0).clamp(min=1e-6)
    return logs / deviation
