"""Train on a store and save what comes out."""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vision_sae import checkpoint
from vision_sae.config import plain_error
from vision_sae.errors import ConfigError, DataError, OutputExists, claim_folder
from vision_sae.jobs.findings import DETECTIONS
from vision_sae.jobs.loading import load_sae, record_of
from vision_sae.jobs.material import Material
from vision_sae.jobs.settings import TRAINING, Recipe, owners, recipe
from vision_sae.logs import METRICS, TrainingLog
from vision_sae.naming import NAMES
from vision_sae.parallel import ALONE, Group
from vision_sae.sae import SAE, SAEConfig
from vision_sae.store import Store
from vision_sae.stream import Stream
from vision_sae.train import OnLog, Run, TrainConfig, train_all
from vision_sae.train.loop import SERIES
from vision_sae.train.resume import DESCRIPTION, forget


def train_store(
    store: Store | Stream,
    out: Path | str,
    *,
    config: TrainConfig | None = None,
    targets: Store | None = None,
    validation: Store | None = None,
    validation_targets: Store | None = None,
    start: SAE | Path | str | None = None,
    overwrite: bool = False,
    on_log: OnLog | None = None,
    group: Group = ALONE,
    device: str | None = None,
    **settings: Any,
) -> SAE:
    """Train an SAE on a store, or on a stream, and save it with its log; the same call resumes it.

    Settings are those of the command line: `family="relu", coefficient=3, expansion=16,
    dead="resample"`; those of the training win over `config`. With `targets`, a store of the same
    images and tokens, it is a transcoder. With `validation`, another store of the same site, the
    best weights on it are the result; a transcoder's needs `validation_targets` too. `start` is an
    SAE, or a folder of one, to go on from.
    `group` comes from `parallel.join()`, when torchrun has started several processes.
    Raises OutputExists when `out` holds a finished SAE or something else, ConfigError, DataError,
    MismatchError.
    """
    out, material = Path(out), Material(store, targets, validation, validation_targets)
    settings = (config.model_dump() if config else {}) | settings
    if start is None:
        plan = recipe(settings)
        sae = SAE(plan.config(store.width, material.width_out), seed=plan.start.seed)
    else:
        plan, sae = _from(start if isinstance(start, SAE) else load_sae(start), settings)
    if group.rank == 0 or not overwrite:
        claim_training(out, overwrite)
    group.total(0)  # all wait until the folder is theirs
    origin = {} if start is None or isinstance(start, SAE) else {"from": str(start)}
    if group.size == 1:  # several processes place their parts themselves
        sae = sae.to(device or group.device)
    with prepared(material, sae, plan, out, on_log, origin, rank=group.rank) as run:
        run.finetune = start is not None
        return train_all([run], group=group)[0]


@contextmanager
def prepared(
    material: Material,
    sae: SAE,
    plan: Recipe,
    out: Path,
    on_log: OnLog | None = None,
    origin: Mapping[str, Any] | None = None,
    *,
    rank: int = 0,
) -> Iterator[Run]:
    """A run that saves the SAE in `out` at its end, and logs there; only rank 0 writes."""
    sae.provenance = material.store.index.provenance
    record = {"initial_seed": plan.start.seed, **material.record(), **(origin or {})}
    record = plan.train.model_dump() | record
    save = partial(checkpoint.save, folder=out, training=record, overwrite=True)
    run = Run(sae, material.source, plan.train, out, material.validation, on_finish=save)
    if rank:
        yield run
        return
    log = TrainingLog(out)
    run.on_log = partial(_tell_both, log, on_log)
    try:
        yield run
    finally:
        log.close()


def _tell_both(
    log: TrainingLog, on_log: OnLog | None, step: int, numbers: dict[str, float]
) -> None:
    log(step, numbers)
    if on_log:
        on_log(step, numbers)


def _from(sae: SAE, settings: dict[str, Any]) -> tuple[Recipe, SAE]:
    """A trained SAE with other settings of its own family. Raises ConfigError for its shape's."""
    kind = sae.config.sparsity.kind
    for name, value in settings.items():
        if not {TRAINING, kind} & set(owners(name)) and (name, value) != ("family", kind):
            raise ConfigError(
                f"a training that goes on from an SAE keeps its shape, so it takes no {name}; "
                f"it takes settings of the training and of the {kind} family"
            )
    plan = recipe({**settings, "family": kind})
    data = sae.config.model_dump()
    data["sparsity"] |= plan.family
    try:
        sae.config = SAEConfig.model_validate(data)
    except ValidationError as error:
        raise ConfigError(plain_error(error)) from None
    return plan, sae


def claim_training(out: Path, overwrite: bool) -> None:
    """Make the folder of a training, or accept that of an unfinished one. Raises OutputExists."""
    claim_folder(out, checkpoint.CONFIG, DESCRIPTION, METRICS, overwrite=overwrite)
    if (out / checkpoint.CONFIG).exists() and not overwrite:
        raise OutputExists(f"{out} holds a finished SAE; choose another folder or pass --overwrite")
    if overwrite:
        forget(out)
        for name in (checkpoint.CONFIG, NAMES, DETECTIONS):
            (out / name).unlink(missing_ok=True)
        for old in (out / SERIES).glob("step-*"):
            shutil.rmtree(old)


def store_of(folder: Path, what: str = "acts") -> Store:
    """The store an SAE was trained on, from its record. Raises DataError when it is gone."""
    acts = record_of(folder).get(what)
    if not acts:
        raise DataError(f"{folder} does not say which {what} it was trained on; pass --{what}")
    if not Path(acts).exists():
        raise DataError(f"the activations that {folder} was trained on are gone; pass --{what}")
    return Store(acts)
