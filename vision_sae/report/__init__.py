"""Pages and pictures: what an SAE's latents see."""

from collections.abc import Callable
from pathlib import Path

from vision_sae import checkpoint
from vision_sae.errors import claim_folder
from vision_sae.jobs import read_findings, store_of
from vision_sae.latents import Scan, scan
from vision_sae.report.gather import gather
from vision_sae.report.page import write_page
from vision_sae.store import Store


def write_report(
    folder: Path | str,
    out: Path | str,
    *,
    store: Store | None = None,
    found: Scan | None = None,
    overwrite: bool = False,
    tell: Callable[[int], None] = lambda images: None,
) -> Path:
    """Write the page of a saved SAE, with the names that are saved beside it; returns index.html.

    The store defaults to the one it was trained on; `found` saves encoding it again. Raises
    OutputExists, MismatchError, DataError when the pictures are gone.
    """
    folder, out = Path(folder), Path(out)
    claim_folder(out, "index.html", overwrite=overwrite)
    sae = checkpoint.load(folder)
    store = store or store_of(folder)
    names, detections = read_findings(folder)
    facts = gather(
        sae, store, found or scan(sae, store), folder=folder, names=names, detections=detections,
        tell=tell,
    )  # fmt: skip
    return write_page(facts, out)


__all__ = ["write_report"]
