"""Training on a store, as the command line does it: interruptions, full disks, used folders."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from vision_sae import checkpoint
from vision_sae.adapters.toy import WIDTH, ToyAdapter
from vision_sae.errors import CheckpointError, DataError, OutputExists, StoreError
from vision_sae.jobs import name_sae, pictures, train_store
from vision_sae.logs import read_metrics
from vision_sae.measures.latents import scan
from vision_sae.provenance import Provenance
from vision_sae.sae import SAE, SAEConfig
from vision_sae.store import Row, Store, StoreIndex, StoreWriter
from vision_sae.train import TrainConfig

CONFIG = TrainConfig(steps=40, batch_size=16)
STATE = "training.safetensors"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("jobs") / "acts"
    index = StoreIndex(
        provenance=Provenance(model="m", fingerprint="f", site="s", tokens="all", data="d"),
        dtype="float32",
        width=WIDTH,
        tokens_per_image=2,
        prefix_tokens=0,
        grid=None,
    )
    writer = StoreWriter(folder, index)
    acts = torch.randn(40, 2, WIDTH, generator=torch.Generator().manual_seed(0))
    writer.add(acts, [Row(i, f"k{i}", {}) for i in range(40)])
    writer.finish()
    return Store(folder)


def run(store: Store, out: Path, **options: Any) -> SAE:
    return train_store(store, out, **{"k": 4, "expansion": 2, "config": CONFIG} | options)


@pytest.fixture
def interrupts() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, also where the tests run in the background."""
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, usual)


def stop_in_the_middle_of_step(step: int, patch: pytest.MonkeyPatch) -> None:
    """Ctrl-C after Adam's step and before the atoms are of unit norm again."""
    plain, calls = SAE.normalise_decoder, list[int]()

    def interrupted(sae: SAE) -> None:
        calls.append(1)
        if len(calls) == step:
            signal.raise_signal(signal.SIGINT)
        plain(sae)

    patch.setattr(SAE, "normalise_decoder", interrupted)


@pytest.mark.usefixtures("interrupts")
@pytest.mark.parametrize("step", [1, 11, 40])
def test_ctrl_c_within_a_step_waits_for_its_end(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    run(store, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_in_the_middle_of_step(step, patch)
        run(store, tmp_path / "sae")
    assert int(load_file(tmp_path / "sae" / STATE)["step"]) == step
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    run(store, tmp_path / "sae")
    for name in ("sae.safetensors", "metrics.jsonl"):
        assert (tmp_path / "sae" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not list((tmp_path / "sae").glob("training.*"))


def stop_at(step: int) -> Any:
    def on_log(now: int, numbers: dict[str, float]) -> None:
        if now == step:
            raise KeyboardInterrupt

    return on_log


def test_a_run_whose_end_cannot_be_written_is_not_lost(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> None:
        raise StoreError("No space left on device")

    with pytest.raises(KeyboardInterrupt):
        run(store, tmp_path, on_log=stop_at(30))
    with monkeypatch.context() as patch, pytest.raises(StoreError, match="No space"):
        patch.setattr(checkpoint, "write_tensors", full)
        run(store, tmp_path)
    steps: list[int] = []
    run(store, tmp_path, on_log=lambda step, numbers: steps.append(step))
    assert (tmp_path / "config.json").exists() and steps == []  # 31 to 39 hold no tenth step


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_again(
    store: Store, tmp_path: Path
) -> None:
    class Killed(Exception):
        pass

    def kill(step: int, numbers: dict[str, float]) -> None:
        if step == 20:
            raise Killed

    with pytest.raises(Killed):
        run(store, tmp_path, on_log=kill)
    assert not (tmp_path / STATE).exists()
    run(store, tmp_path)
    assert [row["step"] for row in read_metrics(tmp_path)] == [0, 10, 20, 30]


def test_an_unfinished_run_with_other_settings_is_refused(store: Store, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(store, tmp_path, on_log=stop_at(10))
    with pytest.raises(CheckpointError, match=r"other settings \(sae\); finish it .*--overwrite"):
        run(store, tmp_path, k=5)
    with pytest.raises(CheckpointError, match=r"other settings \(train\)"):
        run(store, tmp_path, config=TrainConfig(steps=41, batch_size=16))
    assert run(store, tmp_path, k=5, overwrite=True).config.sparsity.k == 5


def test_a_broken_checkpoint_is_named(store: Store, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(store, tmp_path, on_log=stop_at(10))
    state = tmp_path / STATE
    state.write_bytes(state.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match=f"{STATE}: .*pass --overwrite"):
        run(store, tmp_path)


def test_a_finished_sae_remembers_where_it_is_from(store: Store, tmp_path: Path) -> None:
    run(store, tmp_path)
    saved = checkpoint.read_config(tmp_path)
    assert saved.provenance == store.index.provenance
    assert saved.training["steps"] == 40 and saved.training["acts"] == str(store.folder)
    with pytest.raises(OutputExists, match="holds a finished SAE"):
        run(store, tmp_path)


def test_latents_that_never_fire_have_no_names(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    sae = SAE(SAEConfig.of(WIDTH, 48, "topk", 4)).eval()
    with torch.no_grad():
        sae.b_enc.fill_(-100)
    monkeypatch.setattr("vision_sae.jobs.naming.check_model", lambda adapter, store: None)
    with pytest.raises(DataError, match="no latent of this SAE ever fires"):
        name_sae(ToyAdapter(), store, scan(sae, store), ["a", "b"])


def test_stores_of_prompts_have_no_pictures(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a cat\na dog\n")
    where = Provenance(
        model="m", fingerprint="f", site="s", tokens="all", data=str(tmp_path / "prompts.txt")
    )
    index = StoreIndex(
        provenance=where, dtype="float32", width=3, tokens_per_image=1, prefix_tokens=0, grid=None
    )
    writer = StoreWriter(tmp_path / "acts", index)
    writer.add(torch.ones(2, 1, 3), [Row(0, "0", {}), Row(1, "1", {})])
    writer.finish()
    with pytest.raises(DataError, match="no picture for each row to show: it is of .*prompts.txt"):
        list(pictures(Store(tmp_path / "acts"), [0]))
