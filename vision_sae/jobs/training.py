"""Train on a store and save what comes out."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from vision_sae import checkpoint
from vision_sae.errors import DataError, OutputExists, claim_folder
from vision_sae.jobs.findings import DETECTIONS, NAMES
from vision_sae.logs import METRICS, TrainingLog
from vision_sae.sae import SAE, SAEConfig
from vision_sae.store import Store
from vision_sae.train import TrainConfig, train
from vision_sae.train.resume import DESCRIPTION, forget


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
