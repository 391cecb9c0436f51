"""The page of pictures before and after: its cards, tables and pictures."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vision_sae.data.prompts import Prompt
from vision_sae.errors import require
from vision_sae.recipes.unlearn.plan import Plan, SiteEdit, TextEdit
from vision_sae.report.html import render

Labels = Sequence[Mapping[str, str]]
Verdict = tuple[dict[str, str], dict[str, str]]  # what a plain and an edited picture show
LISTED = 12  # latents of an edit that are named


class Pair(NamedTuple):
    """One prompt's pictures, of the same seed.

    `mask` is how far each position of the edited sites was moved, as a share of a position's mean
    length there: the mean over the calls, the largest of the sites. None where a site has no map.
    """

    prompt: Prompt
    plain: Float[Tensor, "3 h w"]
    edited: Float[Tensor, "3 h w"]
    mask: Float[Tensor, "y x"] | None


def page(
    plans: Sequence[Plan],
    pairs: Sequence[Pair],
    labels: Labels | None,
    read: Sequence[Verdict] | None,
) -> str:
    """One HTML file that needs no others."""
    concepts = [plan.concept for plan in plans]
    asked = [asks_for(concepts, label) for label in labels] if labels else [None] * len(pairs)
    furthest = max((float(pair.mask.amax()) for pair in pairs if pair.mask is not None), default=0)
    cards = [
        _card(pair, concepts, asks, read[n] if read else None, furthest)
        for n, (pair, asks) in enumerate(zip(pairs, asked, strict=True))
    ]
    side = max(pairs[0].plain.shape[1:])
    return render(
        __package__,
        "show.html",
        concepts=concepts,
        plans=[{"plan": plan, "edits": _all_facts(plan)} for plan in plans],
        groups=_groups(cards, bool(labels)),
        tallies=tallies(concepts, read, asked) if read else [],
        shown=128 if side <= 128 else 256,
        pixels=side <= 64,
        masked=any(pair.mask is not None for pair in pairs),
    )


def asks_for(concepts: Sequence[str], label: Mapping[str, str]) -> bool:
    """Whether a prompt asks for a concept that is removed."""
    return any(f"{factor}:{value}" in concepts for factor, value in label.items())


def _card(
    pair: Pair,
    concepts: Sequence[str],
    asks: bool | None,
    read: Verdict | None,
    furthest: float,
) -> dict[str, Any]:
    pictures = {"plain": data_uri(pair.plain), "edited": data_uri(pair.edited)}
    if pair.mask is not None:
        pictures["mask"] = data_uri(heated(pair.edited, pair.mask / max(furthest, 1e-12)))
    found: dict[str, Any] = {
        "prompt": pair.prompt,
        "pictures": pictures,
        "asks": asks,
        "verdict": None,
    }
    found["changed"] = float((pair.plain - pair.edited).abs().mean())
    if read:
        still = any(read[1].get(c.partition(":")[0]) == c.partition(":")[2] for c in concepts)
        good = not still if asks else read[0] == read[1]
        texts = (", ".join(map(str, one.values())) for one in read)
        found["verdict"] = {"texts": tuple(texts), "good": None if asks is None else good}
    return found


def _groups(cards: list[dict[str, Any]], labelled: bool) -> list[tuple[str, list[dict[str, Any]]]]:
    if not labelled:
        return [("Prompts", cards)]
    asking = [card for card in cards if card["asks"]]
    others = [card for card in cards if not card["asks"]]
    groups = [("Prompts that ask for what is removed", asking), ("Other prompts", others)]
    return [(title, some) for title, some in groups if some]


def tallies(
    concepts: Sequence[str],
    read: Sequence[Verdict],
    asked: Sequence[bool | None],
) -> list[tuple[str, str]]:
    """Counts of what the judge reads: (what, "before → after of n")."""
    found = []
    for concept in concepts:
        factor, _, value = concept.partition(":")
        before, after = (sum(one[side].get(factor) == value for one in read) for side in (0, 1))
        found.append((f"pictures read as {concept}", f"{before} → {after} of {len(read)}"))
    others = [one for one, asks in zip(read, asked, strict=True) if asks is False]
    if others:
        same = sum(plain == edited for plain, edited in others)
        found.append(("other prompts read as before", f"{same} of {len(others)}"))
    return found


def _all_facts(plan: Plan) -> list[dict[str, str]]:
    """Of a plan's edits of sites, or of text."""
    return [facts(edit) for edit in plan.edits] or [text_facts(edit) for edit in plan.text]


def text_facts(edit: TextEdit) -> dict[str, str]:
    """One edit of text in words, for the table."""
    return {
        "layer": f"{edit.component}, layer {edit.layer}",
        "strength": f"{edit.strength:g}",
        "negative prompts": "the other way" if edit.negative else "left as they are",
    }


def facts(edit: SiteEdit) -> dict[str, str]:
    """One edit in words, for the table."""
    latents = [str(latent) for latent in edit.latents.tolist()]
    more = f" and {len(latents) - LISTED} more" if len(latents) > LISTED else ""
    steps = sorted(edit.timesteps.tolist())
    low, high = max(edit.window[0], 0), min(edit.window[1], 1000)
    return {
        "site": edit.site,
        "latents": f"{len(latents)}: {', '.join(latents[:LISTED])}{more}",
        "strengths": _range(edit.strengths),
        "mode": edit.mode + (f" × {edit.multiplier:g}" if _multiplies(edit) else ""),
        "gate": edit.where,
        "half": edit.half,
        "window": f"timesteps {low} to {high}",
        "tables": f"{len(steps)} timesteps, {steps[0]} to {steps[-1]}" if steps else "none",
        "SAE": edit.sae,
    }


def _multiplies(edit: SiteEdit) -> bool:
    return edit.mode in ("multiple", "clamp", "scale")


def _range(strengths: Float[Tensor, "T m"]) -> str:
    used = strengths[strengths != 0]
    if not used.numel():
        return "0 (the identity)"
    low, high = float(used.min()), float(used.max())
    zeros = 1 - used.numel() / strengths.numel()
    rest = f", 0 in {zeros:.0%} of the table" if zeros else ""
    return (f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}") + rest


def heated(picture: Float[Tensor, "3 h w"], mask: Float[Tensor, "y x"]) -> Float[Tensor, "3 h w"]:
    """The picture in grey, with what the mask (0..1) marks in red."""
    size = picture.shape[1:]
    heat = F.interpolate(mask[None, None], tuple(size), mode="nearest")[0]
    grey = picture.mean(0, keepdim=True).expand(3, *size) * 0.6 + 0.25
    red = torch.tensor([0.9, 0.12, 0.1])[:, None, None]
    return torch.lerp(grey, red.expand_as(grey), 0.75 * heat)


def data_uri(picture: Float[Tensor, "3 h w"]) -> str:
    """A picture inside the page; small ones without loss."""
    pixels = (picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
    data = io.BytesIO()
    image = require("PIL.Image", "report").fromarray(pixels)
    small = max(image.size) <= 128
    image.save(data, "WEBP", lossless=small, quality=80 if small else 90)
    return "data:image/webp;base64," + base64.b64encode(data.getvalue()).decode()
