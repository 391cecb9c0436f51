"""Pages and pictures: what an SAE's latents see."""

import logging
from collections.abc import Callable
from pathlib import Path

from vision_sae.errors import VisionSAEError, claim_folder
from vision_sae.jobs import detect_factors, load_sae, read_findings, store_of
from vision_sae.jobs.pictures import from_prompts, picture_source
from vision_sae.measures.latents import Scan, scan
from vision_sae.model.adapter import Adapter, load_adapter
from vision_sae.report.gather import gather
from vision_sae.report.page import write_page
from vision_sae.store import Store

log = logging.getLogger(__name__)


def write_report(
    folder: Path | str,
    out: Path | str,
    *,
    store: Store | None = None,
    found: Scan | None = None,
    adapter: Adapter | None = None,
    overwrite: bool = False,
    tell: Callable[[int], None] = lambda images: None,
) -> Path:
    """Write the page of a saved SAE, with the names that are saved beside it; returns index.html.

    The store defaults to the one it was trained on; `found` saves encoding it again. Latents of
    class tokens get heatmaps when their model, `adapter` or the one of that name, can be loaded.
    That model draws the pictures of a store of prompts; its latents need no names, as they are
    tested on the columns of the table of prompts.
    Raises OutputExists, MismatchError, DataError when the pictures are gone or cannot be drawn.
    """
    folder, out = Path(folder), Path(out)
    claim_folder(out, "index.html", overwrite=overwrite)
    sae = load_sae(folder)
    store = store or store_of(folder)
    adapter = adapter or _adapter_of(store)
    picture_source(store, adapter)  # refused before anything is encoded
    found = found or scan(sae, store)
    naming, detections = read_findings(folder)
    if not detections and from_prompts(store):
        detections = detect_factors(store, found)
    facts = gather(
        sae, store, found, folder=folder, naming=naming, detections=detections, adapter=adapter,
        tell=tell,
    )  # fmt: skip
    return write_page(facts, out)


def _adapter_of(store: Store) -> Adapter | None:
    """The model that draws, or that class-token heatmaps need; None where it is not needed.

    Raises what `load_adapter` does for one that must draw and cannot be loaded.
    """
    if from_prompts(store):
        return load_adapter(store.index.provenance.model)
    if store.index.provenance.tokens != "cls":
        return None
    try:
        return load_adapter(store.index.provenance.model)
    except VisionSAEError as error:
        log.warning("no heatmaps: %s", error)
        return None


__all__ = ["write_report"]
