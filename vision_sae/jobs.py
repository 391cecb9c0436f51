"""The main job, step by step, as the command line runs it: each step is a call from Python too.

images -> extract -> acts/ -> train -> sae/ -> evaluate -> name -> report -> report/index.html
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vision_sae import checkpoint, factors, naming
from vision_sae.adapter import Adapter, TextImageAdapter, fingerprint, probe_site
from vision_sae.data import ImageSource, open_data
from vision_sae.data.decode import decoded
from vision_sae.errors import DataError, MismatchError, OutputExists, UnknownName, claim_folder
from vision_sae.files import write_json
from vision_sae.latents import Scan, check_match
from vision_sae.logs import METRICS, TrainingLog
from vision_sae.resume import DESCRIPTION, forget
from vision_sae.sae import SAE, SAEConfig
from vision_sae.splice import Spliced, splice_accuracy
from vision_sae.store import Store
from vision_sae.train import TrainConfig, train

NAMES, DETECTIONS = "names.json", "detections.json"
Tell = Callable[[int], None]


def train_store(
    store: Store,
    out: Path | str,
    *,
    family: str = "topk",
    k: int = 16,
    expansion: int = 16,
    config: TrainConfig | None = None,
    overwrite: bool = False,
    on_log: Callable[[int, dict[str, float]], None] | None = None,
) -> SAE:
    """Train an SAE on a store and save it with its log; the same call resumes an interrupted run.

    Raises OutputExists when `out` holds a finished SAE or something else, ConfigError, DataError.
    """
    out, config = Path(out), config or TrainConfig()
    sae_config = SAEConfig.of(store.width, expansion * store.width, family, k)
    _claim_training(out, overwrite)
    sae = SAE(sae_config, seed=config.seed)
    sae.provenance = store.index.provenance
    log = TrainingLog(out)

    def both(step: int, numbers: dict[str, float]) -> None:
        log(step, numbers)
        if on_log:
            on_log(step, numbers)

    record = {**config.model_dump(), "acts": str(store.folder.resolve())}
    save = partial(checkpoint.save, folder=out, training=record, overwrite=True)
    try:
        return train(sae, store, config, folder=out, on_log=both, on_finish=save)
    finally:
        log.close()


def _claim_training(out: Path, overwrite: bool) -> None:
    claim_folder(out, checkpoint.CONFIG, DESCRIPTION, METRICS, overwrite=overwrite)
    if (out / checkpoint.CONFIG).exists() and not overwrite:
        raise OutputExists(f"{out} holds a finished SAE; choose another folder or pass --overwrite")
    if overwrite:
        forget(out)
        for name in (checkpoint.CONFIG, NAMES, DETECTIONS):
            (out / name).unlink(missing_ok=True)


def store_of(folder: Path) -> Store:
    """The store an SAE was trained on, from its record. Raises DataError when it is gone."""
    acts = checkpoint.read_config(folder).training.get("acts")
    if not acts or not Path(acts).exists():
        raise DataError(f"the activations that {folder} was trained on are gone; pass --acts")
    return Store(acts)


def check_model(adapter: Adapter, store: Store) -> None:
    """Raises MismatchError when the store was made with another model, or other weights."""
    provenance = store.index.provenance
    if adapter.name != provenance.model:
        raise MismatchError(f"the activations are from {provenance.model!r}, not {adapter.name!r}")
    if fingerprint(adapter.model) != provenance.fingerprint:
        raise MismatchError(
            f"{adapter.name!r} has other weights than when the activations were made; extract again"
        )


def pick_images(
    store: Store, images: list[int], source: ImageSource | None = None
) -> dict[int, Any]:
    """Pictures of some of a store's images. Raises DataError when the source has changed since."""
    source = source or open_data(store.index.provenance.data)
    by_position = {store.positions[i]: i for i in images}
    if not by_position:
        return {}
    first, found = min(by_position), {}
    for position, item in enumerate(source.items(first), first):
        if position not in by_position:
            continue
        i = by_position[position]
        if item.key != store.keys[i]:
            raise DataError(
                f"{source.name} has changed: image {position} was {store.keys[i]!r}, "
                f"is {item.key!r}"
            )
        found[i] = item.open()
    if len(found) < len(images):
        raise DataError(f"{source.name} has changed: {len(images) - len(found)} images are gone")
    return found


def embed_store_images(
    adapter: TextImageAdapter, store: Store, images: list[int], tell: Tell = lambda n: None
) -> Float[Tensor, "images e"]:
    """Unit embeddings of the chosen images, as rows of a table of all; the others are NaN."""
    pictures, out = pick_images(store, images), None
    for start in range(0, len(images), 64):
        ids = images[start : start + 64]
        rows = adapter.embed_images(adapter.prepare([pictures[i] for i in ids])).cpu()
        if out is None:
            out = torch.full((store.images, rows.shape[1]), torch.nan)
        out[ids] = rows
        tell(len(ids))
    assert out is not None
    return out


def name_sae(
    adapter: Adapter,
    store: Store,
    found: Scan,
    words: list[str],
    *,
    top: int = 20,
    tell: Tell = lambda n: None,
) -> list[naming.Name]:
    """A name for each live latent. Raises MismatchError, DataError for a model without texts."""
    check_model(adapter, store)
    if not isinstance(adapter, TextImageAdapter):
        raise DataError(f"{adapter.name} has no text embeddings, so it cannot name latents")
    images = naming.top_images(found.codes, top)
    if not images:
        raise DataError("no latent of this SAE ever fires, so there is nothing to name")
    embedded = embed_store_images(adapter, store, images, tell)
    live, directions = naming.latent_directions(found.codes, embedded, top)
    return naming.name_latents(live, directions, words, adapter.embed_texts(words).cpu())


def detect_factors(store: Store, found: Scan) -> list[factors.Detection]:
    """Each live latent against the known factors of the store's images; empty without factors."""
    labels = factors.labels_of(store.about)
    if not labels.names:
        return []
    return factors.detections(found.codes, labels, factors.halves(store.keys))


def known_names(store: Store) -> list[str]:
    """The names of the store's images, as a vocabulary. Raises DataError when they have none."""
    names = {str(a[k]) for a in store.about for k in ("name", "label") if k in a}
    if len(names) < 2:
        raise DataError("the images carry no names to choose from; pass --vocabulary words.txt")
    return sorted(names)


def summary_of(names: list[naming.Name], detections: list[factors.Detection]) -> dict[str, float]:
    """The numbers that say how interpretable the latents are."""
    live = len(names)
    scores = sorted(n.score for n in names)
    found = {"live latents": live, "median name score": scores[live // 2] if live else 0.0}
    if detections:
        found["share with F1 of 0.5 or more"] = share_detecting(detections, live)
        found["share with AUROC of 0.8 or more"] = sum(d.auroc >= 0.8 for d in detections) / live
    return found


def findings_as_data(
    names: list[naming.Name], detections: list[factors.Detection]
) -> dict[str, list[dict[str, Any]]]:
    return {"names": [asdict(n) for n in names], "detections": [asdict(d) for d in detections]}


def share_detecting(found: list[factors.Detection], live: int, f1: float = 0.5) -> float:
    """The share of live latents whose F1 for some factor is at least this."""
    return sum(d.f1 >= f1 for d in found) / max(1, live)


def splice_sae(
    adapter: Adapter,
    sae: SAE,
    store: Store,
    *,
    source: ImageSource | None = None,
    label: str | None = None,
    images: int = 1000,
    tell: Tell = lambda n: None,
) -> Spliced:
    """Zero-shot accuracy with the reconstruction spliced in, on the first images of a source.

    The classes are all values of `label` (by default `name`, else `label`) among the store's
    images. Raises MismatchError, DataError, UnknownName for a label that is not there.
    """
    check_model(adapter, store)
    check_match(sae, store)
    if not isinstance(adapter, TextImageAdapter):
        raise DataError(f"{adapter.name} has no text embeddings, so there is no zero-shot accuracy")
    source = source or open_data(store.index.provenance.data)
    label = _label_key(store.about, label)
    classes = sorted({str(a[label]) for a in store.about if label in a})
    texts = adapter.embed_texts(classes).cpu()
    where = store.index.provenance
    example = adapter.prepare([next(i.image for i in decoded(source) if i.image)])
    site = probe_site(adapter, where.site, example)
    batches = _labelled(adapter, source, label, classes, images, tell)
    mean = store.sample(2**14).mean(0)
    return splice_accuracy(adapter, sae, site, where.tokens, mean, texts, batches)


def _label_key(about: list[dict[str, Any]], label: str | None) -> str:
    keys = {key for known in about for key in known}
    for key in [label] if label else ["name", "label"]:
        if key in keys:
            return key
    raise UnknownName("label", label or "label", keys)


def _labelled(
    adapter: Adapter, source: ImageSource, label: str, classes: list[str], images: int, tell: Tell
) -> Iterator[tuple[Tensor, Int[Tensor, " b"]]]:
    """Prepared batches with class numbers; images without a known class are left out."""
    number = {name: i for i, name in enumerate(classes)}
    usable = (i for i in decoded(source) if i.image and str(i.about.get(label)) in number)
    rows = islice(usable, images)
    while group := list(islice(rows, 64)):
        truth = torch.tensor([number[str(i.about[label])] for i in group])
        yield adapter.prepare([i.image for i in group]), truth
        tell(len(group))


def save_findings(
    folder: Path, names: list[naming.Name], detections: list[factors.Detection]
) -> None:
    """Write names and detections beside the SAE, for the report and for others to read."""
    found = findings_as_data(names, detections)
    write_json(folder / NAMES, found["names"])
    write_json(folder / DETECTIONS, found["detections"])


def read_findings(folder: Path) -> tuple[list[naming.Name], list[factors.Detection]]:
    """What `save_findings` wrote; empty lists where there is nothing."""
    return (
        [naming.Name(**row) for row in _rows_of(folder / NAMES)],
        [factors.Detection(**row) for row in _rows_of(folder / DETECTIONS)],
    )


def _rows_of(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
    return rows
