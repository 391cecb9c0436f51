"""What SAEs are trained on: inputs, a transcoder's targets, rows held out to stop by."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from vision_sae.errors import ConfigError, MismatchError
from vision_sae.matching import check_paired
from vision_sae.measures import metrics
from vision_sae.measures.metrics import Metrics
from vision_sae.sae import SAE
from vision_sae.source import Batch, Source
from vision_sae.store import Paired, Store
from vision_sae.stream import Stream

HELD_OUT = 2**14  # rows that a validation reads
MEASURED = 2**15  # rows that final metrics are of


@dataclass
class Material:
    """Stores that belong together, or the stream of a running model in place of the first.

    Raises MismatchError when they do not belong together.
    """

    store: Store | Stream
    targets: Store | None = None
    held_out: Store | None = None
    held_out_targets: Store | None = None

    def __post_init__(self) -> None:
        if bool(self.held_out_targets) != bool(self.held_out and self.targets):
            raise ConfigError(
                "validation targets are for a transcoder that is validated: give targets, "
                "validation rows and validation targets, or leave all validation out"
            )
        for inputs, outputs in ((self.store, self.targets), (self.held_out, self.held_out_targets)):
            if inputs and outputs:
                if isinstance(inputs, Stream):
                    raise ConfigError("a transcoder is trained on two stores, not on a stream")
                check_paired(inputs, outputs)
        for held_out, store in ((self.held_out, self.store), (self.held_out_targets, self.targets)):
            if held_out and store:
                _check_alike(held_out, store)

    @cached_property
    def source(self) -> Source:
        return Paired(self.store, self.targets) if self.targets else self.store

    @cached_property
    def held_out_source(self) -> Source | None:
        if self.held_out and self.held_out_targets:
            return Paired(self.held_out, self.held_out_targets)
        return self.held_out

    @cached_property
    def validation(self) -> Batch | None:
        return self.held_out_source.sample(HELD_OUT) if self.held_out_source else None

    @property
    def width_out(self) -> int | None:
        return self.targets.width if self.targets else None

    def record(self) -> dict[str, str]:
        """The folders, for the SAE's config."""
        kind = "stream" if isinstance(self.store, Stream) else "acts"
        named = {kind: self.store, "targets": self.targets, "validated_on": self.held_out,
                 "validation_targets": self.held_out_targets}  # fmt: skip
        return {name: _called(store) for name, store in named.items() if store}

    def measure(self, sae: SAE) -> Metrics:
        """Of a finished SAE, on a sample: of the held-out rows where there are some."""
        source = self.held_out_source or self.source
        return metrics.evaluate(sae, _pieces(source.sample(MEASURED, seed=2)))


def _called(store: Store | Stream) -> str:
    return store.name if isinstance(store, Stream) else str(store.folder.resolve())


def _check_alike(held_out: Store, store: Store | Stream) -> None:
    reason = store.index.provenance.differs(held_out.index.provenance)
    if reason:
        raise MismatchError(
            f"{held_out.folder} cannot validate a training on {_called(store)}: {reason}"
        )


def _pieces(rows: Batch, size: int = 4096) -> Iterator[Batch]:
    if isinstance(rows, Tensor):
        return iter(rows.split(size))
    return zip(rows[0].split(size), rows[1].split(size), strict=True)
