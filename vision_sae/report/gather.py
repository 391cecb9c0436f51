"""Fill a report from an SAE and a store: statistics, pictures, heatmaps, neighbours, a map."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vision_sae.errors import require
from vision_sae.jobs.findings import names_that_hold, share_detecting
from vision_sae.jobs.loading import record_of
from vision_sae.jobs.pictures import from_prompts, pictures
from vision_sae.logs import read_metrics
from vision_sae.measures import factors
from vision_sae.measures.latents import ImageCodes, Scan
from vision_sae.model.adapter import Adapter
from vision_sae.naming import Name, Naming
from vision_sae.provenance import Provenance
from vision_sae.report import heat
from vision_sae.report.facts import Activity, ImageFacts, LatentFacts, Picture, ReportFacts
from vision_sae.report.heat import Heats, Wanted
from vision_sae.report.steps import Steps, over_steps
from vision_sae.sae import SAE
from vision_sae.store import Store

TOP, PER_QUANTILE, BINS, NEIGHBOURS, THUMBNAIL = 12, 4, 30, 8, 64
QUANTILES = ((0.75, 1.0), (0.5, 0.75), (0.25, 0.5), (0.0, 0.25))
Tell = Callable[[int], None]


def gather(
    sae: SAE,
    store: Store,
    found: Scan,
    *,
    folder: Path,
    naming: Naming | None = None,
    detections: Sequence[factors.Detection] = (),
    adapter: Adapter | None = None,
    tell: Tell = lambda n: None,
) -> ReportFacts:
    """Everything a report shows.

    With an `adapter`, latents of class tokens get heatmaps too, and the pictures of prompts are
    drawn. Raises as `pictures` does.
    """
    chosen = {s: _choose(found.codes, s) for s in found.live}
    steps = over_steps(sae, store, _wanted(chosen)) if store.index.provenance.timesteps else None
    heats, meaning = _heats(sae, store, chosen, steps, adapter, tell)
    drawn = from_prompts(store)
    number, images = _images(store, chosen, adapter, tell if steps else lambda n: None)
    named = naming or Naming([], {})
    by_latent = {n.latent: n for n in named.names}
    detected = {d.latent: d for d in detections}
    near, places = neighbours(sae, found.live), places_of(sae, found.live)
    latents = [
        _latent(
            s,
            found,
            chosen[s],
            heats,
            steps,
            number,
            near[s],
            places[s],
            by_latent.get(s),
            detected.get(s),
        )
        for s in found.live
    ]
    numbers: dict[str, float] = found.metrics.as_dict() | names_that_hold(named.names)
    if detections:
        numbers["live latents with F1 of 0.5 or more"] = share_detecting(
            list(detections), len(found.live)
        )
    return ReportFacts(
        title="What the latents see",
        provenance=_provenance(sae, folder, store, drawn)
        | {"heatmaps": meaning}
        | _names_from(named),
        numbers=numbers,
        frequencies=found.frequencies.tolist(),
        image_fvu=found.image_fvu.tolist(),
        training=read_metrics(folder),
        latents=latents,
        images=images,
        timesteps=list(store.index.provenance.timesteps),
        noun="prompt" if drawn else "image",
    )


Groups = dict[str, list[tuple[int, float]]]  # group -> (image, value)


def _choose(codes: ImageCodes, latent: int) -> Groups:
    """The strongest images, and some from each quarter of the rest, evenly spaced."""
    images, values = codes.of(latent)
    pairs = list(zip(images.tolist(), values.tolist(), strict=True))
    groups: Groups = {"top": pairs[:TOP]}
    rest = pairs[TOP:]
    for low, high in QUANTILES if len(rest) >= len(QUANTILES) * PER_QUANTILE else ():
        part = rest[round((1 - high) * len(rest)) : round((1 - low) * len(rest))]
        every = max(1, len(part) // PER_QUANTILE)
        groups[f"{low:.0%} to {high:.0%}"] = part[::every][:PER_QUANTILE]
    return groups


def shown_images(found: Scan) -> list[int]:
    """The images that a report of this scan shows, in order."""
    chosen = (_choose(found.codes, s) for s in found.live)
    return sorted({i for groups in chosen for pairs in groups.values() for i, _ in pairs})


def _wanted(chosen: dict[int, Groups]) -> Wanted:
    """The latents that each shown image needs heat for, and how strongly they fire on it."""
    wanted: Wanted = {}
    for latent, groups in chosen.items():
        for image, value in (pair for pairs in groups.values() for pair in pairs):
            wanted.setdefault(image, {})[latent] = value
    return wanted


def _heats(
    sae: SAE,
    store: Store,
    chosen: dict[int, Groups],
    steps: Steps | None,
    adapter: Adapter | None,
    tell: Tell,
) -> tuple[Heats, str]:
    """The heat of every picture, and in words what it is."""
    if steps and store.index.grid is not None:
        several = len(store.index.provenance.timesteps) > 1
        when = ", at the timestep where the latent is strongest on that picture" if several else ""
        return steps.heats, f"activation of each patch{when}"
    if store.index.grid is not None:
        return heat.of_patches(sae, store, _wanted(chosen), tell), "activation of each patch"
    if store.index.provenance.tokens == "cls" and adapter is not None:
        heats = heat.of_class_token(adapter, sae, store, _wanted(chosen), tell)
        return heats, "what each patch adds to the class token in this block (gradient x token)"
    return {}, "none: this site has no patches"


def _images(
    store: Store, chosen: dict[int, Groups], adapter: Adapter | None, tell: Tell
) -> tuple[dict[int, int], list[ImageFacts]]:
    """Thumbnails of every image shown, and where each stands in the list."""
    shown = sorted({i for groups in chosen.values() for pairs in groups.values() for i, _ in pairs})
    facts = []
    for i, picture in pictures(store, shown, adapter):
        facts.append(_image(store.keys[i], store.about[i], picture))
        tell(1)
    return {image: n for n, image in enumerate(shown)}, facts


def _image(key: str, about: dict[str, Any], picture: Any) -> ImageFacts:
    if "prompt" in about and "seed" in about:
        text = about["prompt"] or "(the empty prompt)"
        return ImageFacts(key, text, thumbnail(picture, whole=True), about["seed"])
    caption = str(about.get("caption") or about.get("label") or key)
    return ImageFacts(key, caption, thumbnail(picture))


def thumbnail(picture: Any, *, whole: bool = False) -> Any:
    """The central square, as CLIP's and timm's preprocessing cut it, so that heatmaps fit.

    The `whole` of a drawn picture, as its heatmap is of all of it.
    """
    ops, side = require("PIL.ImageOps", "images"), (THUMBNAIL, THUMBNAIL)
    rgb = picture.convert("RGB")
    return rgb.resize(side) if whole else ops.fit(rgb, side)


def _latent(
    s: int, found: Scan, groups: Groups, heats: Heats, steps: Steps | None, number: dict[int, int],
    near: list[tuple[int, float]], xy: tuple[float, float], name: Name | None,
    detection: Any,
) -> LatentFacts:  # fmt: skip
    pictures = {
        group: [
            Picture(number[i], v, heats.get((s, i)), steps.strongest[s, i] if steps else None)
            for i, v in pairs
        ]
        for group, pairs in groups.items()
    }
    images, values = found.codes.of(s)
    maximum = float(values[0])
    return LatentFacts(
        id=s,
        name=name,
        frequency=float(found.frequencies[s]),
        image_share=len(images) / found.codes.images,
        mean=float(found.means[s]),
        maximum=maximum,
        histogram=torch.histc(values, BINS, 0, maximum).long().tolist(),
        top=pictures.pop("top"),
        quantiles=pictures,
        neighbours=near,
        detection=detection,
        xy=xy,
        activity=_activity(steps, s) if steps and len(steps.share) > 1 else None,
    )


def _activity(steps: Steps, s: int) -> Activity:
    return Activity(steps.share[:, s].tolist(), steps.mean[:, s].tolist())


def neighbours(sae: SAE, live: list[int]) -> dict[int, list[tuple[int, float]]]:
    """For each live latent, the live ones of nearest decoder direction, with their cosines."""
    ids = torch.tensor(live)
    atoms: Float[Tensor, "l d"] = F.normalize(sae.W_dec.detach()[ids], dim=1)
    out = {}
    for start in range(0, len(live), 1024):
        cosines = atoms[start : start + 1024] @ atoms.T
        cosines[torch.arange(len(cosines)), torch.arange(start, start + len(cosines))] = -2
        best = cosines.topk(min(NEIGHBOURS, len(live) - 1), dim=1)
        for row, (v, i) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True)):
            out[live[start + row]] = [(live[j], c) for j, c in zip(i, v, strict=True)]
    return out


def places_of(sae: SAE, live: list[int]) -> dict[int, tuple[float, float]]:
    """A map of the decoder directions, by t-SNE on cosine distance, scaled to 0..1."""
    if len(live) < 10:
        return {s: (i / 10, 0.5) for i, s in enumerate(live)}
    manifold = require("sklearn.manifold", "report")
    atoms = F.normalize(sae.W_dec.detach()[torch.tensor(live)], dim=1).numpy()
    tsne = manifold.TSNE(
        metric="cosine", init="random", random_state=0, perplexity=min(30, len(live) // 4),
        max_iter=500,
    )  # fmt: skip
    xy = tsne.fit_transform(atoms)
    xy = (xy - xy.min(0)) / (xy.max(0) - xy.min(0)).clip(1e-9)
    return {s: (float(x), float(y)) for s, (x, y) in zip(live, xy, strict=True)}


def _provenance(sae: SAE, folder: Path, store: Store, drawn: bool) -> dict[str, str]:
    where, training = store.index.provenance, record_of(folder)
    steps = {"timesteps": _timesteps(where)} if where.timesteps else {}
    return {
        "model": where.model,
        "site": where.site,
        "tokens": where.tokens,
        **steps,
        "data": f"{where.data} ({store.images:,} {'prompts' if drawn else 'images'})",
        **({"pictures": "drawn by the model from prompts and seeds"} if drawn else {}),
        "SAE": f"{sae.config.sparsity.describe()}, {sae.config.s:,} latents",
        "training": f"{training.get('steps', '?')} steps of {training.get('batch_size', '?')} rows",
    }


def _names_from(naming: Naming) -> dict[str, str]:
    how = naming.how
    if not how:
        return {}
    where = f"{how['vocabulary']}, directions by {how['directions']}"
    return {"names": where, "names tested on": how["tested on"]}


def _timesteps(where: Provenance) -> str:
    steps, halves = where.timesteps, {"none": "", "both": ", both halves"}
    listed = f"{steps[0]}" if len(steps) == 1 else f"{len(steps)}, from {steps[0]} to {steps[-1]}"
    return listed + halves.get(where.half, f", {where.half}itional half")
