"""The trainings that two processes and one must agree on; torchrun runs this in each of the two."""

import signal
import sys
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from vision_sae import parallel
from vision_sae.errors import StoreError, VisionSAEError
from vision_sae.jobs import train_sweep
from vision_sae.nest import Ks, Prefixes, RandomPrefixes
from vision_sae.parallel import Group, Kind
from vision_sae.provenance import Provenance
from vision_sae.sae import SAE, SAEConfig
from vision_sae.store import MemoryStore, Row, Store, StoreIndex, StoreWriter
from vision_sae.train import OnLog, TrainConfig, train

D, S = 12, 48
SHORT = {
    "steps": 12, "batch_size": 32, "lr": 3e-3, "dead": "none", "dead_after": 96, "decay": 0.5,
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One training; `sleeping` latents start so that they never fire."""

    family: str
    sae: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)
    sleeping: int = 0
    poison: int | None = None  # step whose rows 5 and 8 are NaN
    stop: int | None = None  # Ctrl-C at this step, then again to the end
    first: Literal["pair", "alone"] = "pair"  # who trains until then
    then: Literal["pair", "alone"] = "pair"  # and who goes on

    def built(self) -> SAE:
        k = 4 if self.family in ("topk", "abstopk", "batchtopk", "groupmax", "mp") else None
        sae = SAE(SAEConfig.of(D, S, self.family, k, **self.sae), seed=3).double()
        with torch.no_grad():
            sae.b_enc[1 : 2 * self.sleeping : 2] = -8.0
        return sae

    def config(self) -> TrainConfig:
        return TrainConfig.of(**(SHORT | self.train))


L1 = {"coefficient": 0.3}
JUMP = {"coefficient": 0.3, "bandwidth": 0.5}
AUXK = {"dead": {"kind": "auxk", "k": 5, "weight": 0.5}}
SAELENS = {"dead": {"kind": "auxk", "k": 30, "form": "saelens", "weight": 0.5}}
RESAMPLE = {"dead": {"kind": "resample", "times": 3}}

# both kinds can train these
SHARED: dict[str, Case] = {
    "topk": Case("topk"),
    "topk, bfloat16": Case("topk", train={"precision": "bfloat16", "steps": 2}),
    "topk, screened": Case("topk", train={"precision": "screened"}),
    "topk, competing by norm": Case("topk", {"rescale": True, "atoms": "free"}),
    "multi": Case("topk", {"multi": 8}),
    "k falls": Case("topk", {"anneal_from": 30}),
    "abstopk": Case("abstopk"),
    "groupmax": Case("groupmax"),
    "batchtopk": Case("batchtopk"),
    "batchtopk, norms": Case("batchtopk", {"rescale": True, "atoms": "free"}),
    "relu, dense": Case("relu", L1),
    "relu, sparse": Case("relu", L1, sleeping=24, train={"lr": 1e-4}),
    "relu, p": Case("relu", {**L1, "p": 0.5, "atoms": "free"}),
    "panneal": Case("panneal", {**L1, "updates": 3}),
    "jumprelu, step": Case("jumprelu", {**JUMP, "mode": "step"}),
    "jumprelu, tanh": Case("jumprelu", {**JUMP, "mode": "tanh", "atoms": "free"}),
    "jumprelu, target": Case("jumprelu", {**JUMP, "mode": "target", "target": 3}),
    "jumprelu, target, pieces": Case(
        "jumprelu", {**JUMP, "mode": "target", "target": 3}, {"pieces": 2}
    ),
    "gated": Case("gated", {**L1, "atoms": "free"}),
    "prefixes": Case("batchtopk", {"nest": Prefixes()}),
    "prefixes, dense": Case("relu", {**L1, "nest": Prefixes()}),
    "random prefixes": Case("topk", {"nest": RandomPrefixes()}, {"pieces": 2}),
    "auxk": Case("topk", train=AUXK, sleeping=9),
    "auxk, many": Case("batchtopk", train={"dead": "auxk"}, sleeping=20),
    "auxk, all on one process": Case("topk", train=AUXK, sleeping=3),
    "auxk, saelens": Case("topk", train=SAELENS, sleeping=20),
    "ghost": Case("topk", train={"dead": "ghost"}, sleeping=9),
    "preact": Case("jumprelu", {**JUMP}, {"dead": {"kind": "preact", "weight": 0.1}}, sleeping=9),
    "preact, every": Case(
        "jumprelu", {**JUMP}, {"dead": {"kind": "preact", "weight": 0.1, "every": True}}
    ),
    "resample": Case("relu", L1, RESAMPLE, sleeping=9),
    "resample more than rows": Case("relu", L1, {**RESAMPLE, "batch_size": 8}, sleeping=20),
    "resample, pieces": Case("topk", train={**RESAMPLE, "pieces": 3}, sleeping=9),
    "pieces": Case("batchtopk", train={**AUXK, "pieces": 2}, sleeping=9),
    "odd batch": Case("topk", train={"batch_size": 33, "pieces": 4}),
    "clip": Case("jumprelu", JUMP, {"clip": 1e-3, "eps": 1e-3}),
    "average": Case("topk", train={"ema": 0.9}),
    "whitened": Case("batchtopk", train={"inputs": "whiten"}),
    "tied": Case("topk", {"tied": True}),
    "tied, whitened": Case("topk", {"tied": True}, {"inputs": "whiten"}),
    "rows of one norm": Case("topk", {"rows": "constant_norm"}),
    "best": Case("batchtopk", train={"validate_every": 3, "patience": 2, "lr": 0.1}),
    "transcoder": Case("topk", {"d_out": 7, "skip": True}),
    "poisoned": Case("topk", poison=4),
    "poisoned, batchtopk": Case("batchtopk", poison=4),
    "too fast": Case("relu", {"coefficient": 0.1, "atoms": "free"}, {"lr": 1e160}),
    "stopped": Case("batchtopk", train={**AUXK, "ema": 0.9}, sleeping=9, stop=5),
    "stopped, best": Case(
        "jumprelu", JUMP, {"validate_every": 2, "patience": 9, "clip": 0.1}, stop=7
    ),
    "begun alone": Case("batchtopk", train={**AUXK, "ema": 0.9}, sleeping=9, stop=5, first="alone"),
    "left to one": Case("batchtopk", train={**AUXK, "ema": 0.9}, sleeping=9, stop=5, then="alone"),
    "series": Case("batchtopk", train={"series": 2}),
}
# only rows can be shared here
WHOLE: dict[str, Case] = {
    "ks": Case("topk", {"nest": Ks(ks=(1, 4))}),
    "mp": Case("mp"),
    "archetypal": Case("topk", {"dictionary": {"points": 20}}),
}
CASES = SHARED | WHOLE


class Poisoned(MemoryStore):
    """Rows 5 and 8 of one batch are NaN."""

    step = 0

    def batches(self, size: int, *, seed: int = 0, start: int = 0, part: Any = (0, 1)) -> Any:
        for i, numbers in enumerate(self._whole(size, seed, start), start):
            rows = self.all[numbers].clone()
            if i == self.step:
                rows[[5, 8]] = torch.nan
            yield rows[part[0] :: part[1]]

    def _whole(self, size: int, seed: int, start: int) -> Iterator[Tensor]:
        places = MemoryStore(torch.arange(float(self.rows))[:, None])
        return (x[:, 0].long() for x in places.batches(size, seed=seed, start=start))  # type: ignore[union-attr, call-overload]


def data() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    mix = torch.randn(20, D, generator=generator, dtype=torch.float64)
    on = torch.rand(300, 20, generator=generator, dtype=torch.float64) - 0.8
    return 4 * on.clamp(min=0) @ mix + 0.1 * torch.randn(
        300, D, generator=generator, dtype=torch.float64
    )


def source_of(case: Case) -> MemoryStore:
    x = data()
    if case.poison is not None:
        poisoned = Poisoned(x)
        poisoned.step = case.poison
        return poisoned
    return MemoryStore(x, x[:, :7] ** 2) if "d_out" in case.sae else MemoryStore(x)


@dataclass
class Outcome:
    """What a training left: weights, what it said at each step, or its error."""

    state: dict[str, Tensor] = field(default_factory=dict)
    said: list[dict[str, float]] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    error: str = ""


def begin(case: Case, group: Group, folder: Path) -> None:
    """Train until Ctrl-C, which only the first process gets."""

    def interrupt(step: int, numbers: dict[str, float]) -> None:
        if step == case.stop:
            signal.raise_signal(signal.SIGINT)

    try:
        _train(case, group, folder, interrupt)
    except KeyboardInterrupt:
        return
    raise AssertionError("nobody stopped this process")


def finish(case: Case, group: Group, folder: Path) -> Outcome:
    """Train to the end, from whatever the folder holds."""
    out = Outcome()

    def hear(step: int, numbers: dict[str, float]) -> None:
        out.said.append({"step": step, **numbers})

    try:
        sae = _train(case, group, folder, hear)
    except VisionSAEError as error:
        out.error = f"{type(error).__name__}: {error}"
        return out
    out.state = {name: tensor.clone() for name, tensor in sae.state_dict().items()}
    out.config = sae.config.model_dump()
    return out


def _train(case: Case, group: Group, folder: Path, on_log: OnLog) -> SAE:
    validation = data()[:50] if case.config().patience else None
    return train(
        case.built(), source_of(case), case.config(), folder=folder, validation=validation,
        on_log=on_log, log_every=1, group=group,
    )  # fmt: skip


def store(folder: Path) -> Store:
    """The data as a store, for what reads only stores."""
    index = StoreIndex(
        provenance=Provenance(model="m", fingerprint="f", site="s", tokens="all", data="d"),
        dtype="float32", width=D, tokens_per_image=1, prefix_tokens=0, grid=None,
    )  # fmt: skip
    if not folder.exists():
        writer = StoreWriter(folder, index)
        writer.add(data().float()[:, None], [Row(i, f"k{i}", {}) for i in range(300)])
        writer.finish()
    return Store(folder)


def sweep(folder: Path, out: Path, group: Group) -> None:
    """Four members, two of them at a time."""
    grid = {"family": ["topk", "batchtopk"], "k": [2, 4]}
    train_sweep(
        store(folder), out, grid, together=2, group=group, s=S, steps=12, batch_size=32, lr=1e-4
    )


def main(kind: Kind, out: Path) -> None:
    """One of two processes."""
    with parallel.join(kind, timeout=60) as group:
        if kind == "rows" and (out / "fails").exists():
            one_fails(group)
        results = {}
        for name, case in CASES.items():
            if case.stop is not None and case.first == "pair":
                begin(case, group, out / name)
            if case.then == "pair":
                results[name] = asdict(finish(case, group, out / name))
        torch.save(results, out / f"{group.rank}.pt")
        sweep(out / "acts", out / "sweep", group)


def one_fails(group: Group) -> None:
    """The second process finds its disk broken, in the middle of a training."""

    class Broken(MemoryStore):
        def batches(self, *args: Any, **options: Any) -> Iterator[Any]:
            for i, rows in enumerate(super().batches(*args, **options)):
                if i == 3 and group.rank == 1:
                    raise StoreError("the disk is broken")
                yield rows

    train(Case("topk").built(), Broken(data()), Case("topk").config(), group=group)


if __name__ == "__main__":
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    main(sys.argv[1], Path(sys.argv[2]))  # type: ignore[arg-type]
