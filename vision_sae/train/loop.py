"""The one training loop, for one SAE or many: each batch is read once for all who want it."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch

from vision_sae import checkpoint
from vision_sae.errors import CheckpointError
from vision_sae.parallel import ALONE, Group
from vision_sae.sae import SAE
from vision_sae.signals import uninterrupted
from vision_sae.source import Batch, Source
from vision_sae.train.config import TrainConfig
from vision_sae.train.resume import STATE, forget, load_state, save_state
from vision_sae.train.trainer import Trainer

OnLog = Callable[[int, dict[str, float]], None]
SERIES = "series"  # folder of the checkpoints that are kept on the way


@dataclass
class Run:
    """One SAE to train: on what, how, and where its state is kept (nowhere without a folder)."""

    sae: SAE
    source: Source
    config: TrainConfig = field(default_factory=TrainConfig)
    folder: Path | None = None
    validation: Batch | None = None
    finetune: bool = False
    on_log: OnLog | None = None
    on_finish: Callable[[SAE], None] | None = None


def train(
    sae: SAE,
    source: Source,
    config: TrainConfig | None = None,
    *,
    folder: Path | None = None,
    validation: Batch | None = None,
    finetune: bool = False,
    on_log: OnLog | None = None,
    on_finish: Callable[[SAE], None] | None = None,
    log_every: int = 10,
    checkpoint_seconds: float = 60,
    group: Group = ALONE,
) -> SAE:
    """Train an SAE in place and return it in evaluation mode, in the data's units.

    With `folder`, the state is saved there every minute and on Ctrl-C, and a run that finds one
    resumes exactly. The state goes when the run is done, after `on_finish` has made the SAE safe.
    With `validation` rows, the best weights on them are the result. `finetune` goes on from the
    weights of a trained SAE. Raises DataError on NaN (naming step and row), CheckpointError on
    other settings.
    """
    run = Run(sae, source, config or TrainConfig(), folder, validation, finetune, on_log, on_finish)
    return train_all([run], log_every, checkpoint_seconds, group)[0]


def train_all(
    runs: Sequence[Run],
    log_every: int = 10,
    checkpoint_seconds: float = 60,
    group: Group = ALONE,
) -> list[SAE]:
    """Train many SAEs in one pass; those with the same source, batch size and seed share its rows.

    Each resumes by itself. Raises as `train` does.
    """
    trainers = [_begin(run, group) for run in runs]
    saved = time.monotonic()
    with _interruptions(group) as came:
        try:
            for i, batch in _turns(trainers):
                _advance(runs[i], trainers[i], batch, log_every)
                late, stop = group.either(time.monotonic() - saved > checkpoint_seconds, bool(came))
                if stop:
                    raise KeyboardInterrupt
                if late:
                    _save_all(runs, trainers)
                    saved = time.monotonic()
        except KeyboardInterrupt:
            _save_all(runs, trainers)
            group.total(0)  # none leaves before all is written
            raise
    return [_end(run, trainer) for run, trainer in zip(runs, trainers, strict=True)]


def _interruptions(group: Group) -> AbstractContextManager[list[int]]:
    """Several processes hold back Ctrl-C and SIGTERM, so that all stop after the same step."""
    return nullcontext([]) if group.size == 1 else uninterrupted()


def _begin(run: Run, group: Group) -> Trainer:
    trainer = Trainer(run.sae, run.source, run.config, validation=run.validation, group=group)
    if run.folder and (run.folder / STATE).exists():
        load_state(trainer, run.folder)
    else:
        trainer.start(fresh=not run.finetune)
    _check_together(trainer, run.folder)
    return trainer


def _check_together(trainer: Trainer, folder: Path | None) -> None:
    """All start from the same state. Raises CheckpointError when the folder is not shared."""
    least = trainer.group.least(torch.tensor(float(trainer.step)))
    if any(trainer.group.either(float(least or 0) != trainer.step)):
        raise CheckpointError(
            f"only some of the processes find the state of a training in {folder}, or another one: "
            "all must see the same folder"
        )
    if trainer.group.kind == "rows":
        trainer.group.same(trainer.sae.state_dict().values())
    trainer.group.same(trainer.inputs.tensors().values())


def _turns(trainers: Sequence[Trainer]) -> Iterator[tuple[int, Batch]]:
    """Who steps next, on what. Runs that were saved at a later step wait for the others."""
    streams: dict[tuple[int, int, int], tuple[int, Iterator[Batch]]] = {}  # and their next step
    while not all(t.done for t in trainers):
        now = min(t.step for t in trainers if not t.done)
        batches: dict[tuple[int, int, int], Batch] = {}
        for i, t in enumerate(trainers):
            if t.done or t.step > now:
                continue
            size, seed = t.config.batch_size, t.config.seed
            key = (id(t.source), size, seed)
            if key not in batches:
                due, stream = streams.get(key, (-1, iter(())))
                if due != now:  # at first, or when those who read it are done
                    part = (t.group.rows.rank, t.group.rows.size)
                    stream = t.source.batches(size, seed=seed, start=now, part=part)
                batches[key] = next(stream)
                streams[key] = (now + 1, stream)
            yield i, batches[key]


def _advance(run: Run, trainer: Trainer, batch: Batch, log_every: int) -> None:
    with uninterrupted():  # a checkpoint must not hold half a step
        step = trainer.step
        numbers = trainer.train_step(batch, log=step % log_every == 0)
        trainer.step += 1
        if trainer.step % trainer.config.validate_every == 0:
            trainer.validate()
        if numbers and run.on_log and trainer.group.rank == 0:
            run.on_log(step, numbers)
        if run.folder and trainer.config.kept(trainer.step):
            sae, place = trainer.snapshot(), run.folder / SERIES / f"step-{trainer.step:07d}"
            if trainer.group.rank == 0:
                checkpoint.save(sae, place, overwrite=True)


def _save_all(runs: Sequence[Run], trainers: Sequence[Trainer]) -> None:
    for run, trainer in zip(runs, trainers, strict=True):
        if run.folder:
            save_state(trainer, run.folder)


def _end(run: Run, trainer: Trainer) -> SAE:
    sae = trainer.finish()
    if trainer.group.rank == 0:
        if run.on_finish:
            run.on_finish(sae)
        if run.folder:
            forget(run.folder)
    return sae
