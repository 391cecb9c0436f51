"""What is looked at before a training, and when it goes wrong."""

from torch import Tensor

from vision_sae import sharded
from vision_sae.errors import ConfigError, DataError
from vision_sae.parallel import Group
from vision_sae.sae import SAE
from vision_sae.source import Batch, Source, pair
from vision_sae.train.config import TrainConfig


def check_widths(sae: SAE, source: Source) -> None:
    if source.width != sae.config.d:
        raise DataError(
            f"the SAE reads width {sae.config.d}, the activations have width {source.width}"
        )
    wanted, given = sae.config.d_out, getattr(source, "width_out", None)
    if wanted != given:
        raise DataError(f"the SAE writes width {wanted}, the source's targets have width {given}")


def check_settings(sae: SAE, config: TrainConfig, group: Group, rows: int) -> None:
    if config.inputs == "whiten" and (sae.config.rows != "none" or sae.config.d_out is not None):
        raise ConfigError("inputs='whiten' goes with rows='none' and without d_out")
    if config.inputs == "whiten" and sae.config.sparsity.kind == "mp":
        raise ConfigError(
            "inputs='whiten' does not go with matching pursuit: its atoms have norm 1"
        )
    kind = sae.config.sparsity.kind
    if config.precision == "screened" and (kind != "topk" or sae.config.rescale):
        raise ConfigError(
            "precision='screened' is for topk whose latents compete by z alone (rescale=False); "
            f"this is {kind} with rescale={sae.config.rescale}"
        )
    if config.optimizer == "rows" and group.size > 1:
        raise ConfigError("optimizer='rows' is for one process")
    sharded.check(sae.config, group)
    least = min(config.batch_size, rows) // group.rows.size
    if least < config.pieces:
        raise ConfigError(
            f"a batch of {min(config.batch_size, rows)} rows cannot be dealt to {group.rows.size} "
            f"processes in {config.pieces} pieces each: the least batch is "
            f"{group.rows.size * config.pieces}"
        )


def check_finite(rows: Tensor, what: str) -> None:
    bad = int((~rows.isfinite().all(1)).sum())
    if bad:
        raise DataError(f"NaN or infinity in {bad} of {len(rows)} rows of {what}")


def check_batch(batch: Batch, source: Source, config: TrainConfig, step: int, group: Group) -> None:
    """Raises DataError for the first row of a batch that is not finite, on every process alike."""
    for rows in pair(batch):
        finite = group.in_order(rows.isfinite().all(1))
        bad = (~finite).nonzero()[:, 0]
        if len(bad):
            place = _place(source, config, step, int(bad[0]), group.rows.size)
            raise DataError(
                f"NaN or infinity in {len(bad)} of {len(finite)} rows of step {step}; "
                f"the first is {place}"
            )


def _place(source: Source, config: TrainConfig, step: int, row: int, parts: int) -> str:
    locate = getattr(source, "locate", None)
    if locate is None:
        return f"row {row} of the batch"
    return str(locate(config.batch_size, config.seed, step, row, parts))
