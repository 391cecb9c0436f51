"""A stream gives the rows that a store would, in an order that is a function of (seed, batch)."""

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from vision_sae.adapters.toy import ToyAdapter
from vision_sae.data import open_data
from vision_sae.errors import ConfigError, DataError
from vision_sae.extract import activations, extract
from vision_sae.measures.metrics import evaluate
from vision_sae.sae import SAE, SAEConfig
from vision_sae.store import Store
from vision_sae.stream import Stream, streams
from vision_sae.train import Run, TrainConfig, train, train_all

IMAGES, SITE, T = 12, "blocks.0", 17


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(IMAGES):
        Image.new("RGB", (20, 10), (20 * i, 255 - 20 * i, 7 * i)).save(folder / f"{i:02}.png")
    return folder


def stream_of(images: Path, **options: Any) -> Stream:
    options = {"buffer_rows": 5 * T, "batch_size": 3} | options
    return Stream(ToyAdapter(), open_data(str(images)), SITE, **options)


def batches(stream: Stream, count: int, size: int = 20, **options: Any) -> list[Tensor]:
    found = stream.batches(size, **options)
    return list(islice(found, count))


def as_sorted(rows: Tensor) -> Tensor:
    return rows[rows[:, 0].argsort()]


def stored(images: Path, folder: Path) -> Tensor:
    extract(ToyAdapter(), open_data(str(images)), SITE, folder)
    return torch.cat(list(Store(folder).in_order())).flatten(0, 1)


def test_an_epoch_has_each_row_of_a_store_once(images: Path, tmp_path: Path) -> None:
    rows = torch.cat(batches(stream_of(images), 17, size=12))  # 17 * 12 rows: all of them
    want = stored(images, tmp_path / "acts")
    torch.testing.assert_close(as_sorted(rows), as_sorted(want), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(rows, want)


def test_batch_i_is_a_function_of_seed_and_i(images: Path) -> None:
    """Across the edges of blocks and epochs, wherever reading starts."""
    whole = batches(stream_of(images), 25, seed=3)
    for start in (1, 4, 9, 10, 19, 24):
        again = batches(stream_of(images), 25 - start, seed=3, start=start)
        for one, other in zip(whole[start:], again, strict=True):
            torch.testing.assert_close(one, other)
    assert not torch.equal(whole[0], batches(stream_of(images), 1, seed=4)[0])


def test_epochs_come_in_other_orders(images: Path) -> None:
    found = batches(stream_of(images), 34, size=12)
    first, second = torch.cat(found[:17]), torch.cat(found[17:])
    torch.testing.assert_close(as_sorted(first), as_sorted(second), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(first, second)


@pytest.mark.parametrize("parts", [2, 3])
def test_processes_share_the_images(images: Path, tmp_path: Path, parts: int) -> None:
    found = [batches(stream_of(images), 17, size=12, part=(r, parts)) for r in range(parts)]
    assert all(len(batch) == 12 // parts for part in found for batch in part)
    rows = torch.cat([batch for part in found for batch in part])
    want = stored(images, tmp_path / "acts")
    torch.testing.assert_close(as_sorted(rows), as_sorted(want), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_a_row_is_located(images: Path, parts: int) -> None:
    """Of a batch that several processes share, too."""
    stream = stream_of(images)
    found = [batches(stream_of(images), 8, part=(r, parts)) for r in range(parts)]
    by_key = {item.key: item for item in stream.source.items()}
    for number, row in ((0, 0), (6, 13), (7, 19)):
        place = stream.locate(20, 0, number, row, parts)
        token, key = int(place.split()[1]), place.split("'")[1]
        batch = stream.adapter.prepare([by_key[key].open()])
        acts = activations(stream.adapter, batch, stream.site)
        want = found[row % parts][number][row // parts]
        torch.testing.assert_close(acts[0, token], want, atol=1e-5, rtol=1e-5)


SITES = ["blocks.0", "blocks.1", "blocks.1.mlp", "head"]  # head has one token, the others 17


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The images of each forward pass from now on."""
    passes: list[int] = []
    run = ToyAdapter.run

    def noted(self: ToyAdapter, batch: Any) -> Any:
        passes.append(len(batch))
        return run(self, batch)

    monkeypatch.setattr(ToyAdapter, "run", noted)
    return passes


def test_streams_of_many_sites_give_what_each_alone_gives(images: Path) -> None:
    options = {"buffer_rows": 5 * T, "batch_size": 3}
    shared = streams(ToyAdapter(), open_data(str(images)), SITES, **options)
    assert list(shared) == SITES
    for site, stream in shared.items():
        alone = Stream(ToyAdapter(), open_data(str(images)), site, **options)
        for one, other in zip(batches(stream, 12), batches(alone, 12), strict=True):
            torch.testing.assert_close(one, other)
        torch.testing.assert_close(stream.sample(30), alone.sample(30))


def test_trainings_side_by_side_run_the_model_once(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two epochs of 12 images for three sites and a sample: as many passes as for one."""
    source, config = open_data(str(images)), TrainConfig(steps=20, batch_size=20, lr=1e-3)
    passes = counted(monkeypatch)

    def trained(of: list[str]) -> int:
        found = streams(ToyAdapter(), source, of, buffer_rows=5 * T, batch_size=3)
        runs = [Run(SAE(SAEConfig.of(s.width, 48, k=4)), s, config) for s in found.values()]
        passes.clear()
        train_all(runs)
        return sum(passes)

    one = trained(SITES[:1])
    assert 36 <= one <= 60  # a sample, two epochs, and what is made ahead
    assert trained(SITES[:3]) <= one + 12


def test_a_site_that_falls_behind_has_the_model_run_again(images: Path) -> None:
    shared = streams(ToyAdapter(), open_data(str(images)), SITES[:2], buffer_rows=5 * T)
    first = batches(shared["blocks.0"], 24)
    late = batches(shared["blocks.1"], 24)
    assert len(shared["blocks.0"].passes._waiting) <= 2
    alone = batches(Stream(ToyAdapter(), open_data(str(images)), "blocks.1", buffer_rows=5 * T), 24)
    for one, other in zip(late, alone, strict=True):
        torch.testing.assert_close(one, other)
    assert len(first) == 24


def test_a_broken_image_is_named_and_its_rows_are_of_others(images: Path) -> None:
    (images / "03.png").write_text("not a picture")
    stream = stream_of(images)
    rows = torch.cat(batches(stream, 17, size=12))
    assert list(stream.skipped) == ["03"] and "not an image" in stream.skipped["03"]
    assert rows.shape == (17 * 12, 24) and bool(rows.isfinite().all())
    again = torch.cat(batches(stream_of(images), 10, size=12, start=7))
    torch.testing.assert_close(rows[7 * 12 :], again)


def test_a_block_of_broken_images_is_refused(images: Path) -> None:
    for i in range(1, IMAGES):
        (images / f"{i:02}.png").write_text("not a picture")
    with pytest.raises(DataError, match="none of 5 images of a block can be read; the first"):
        batches(stream_of(images), 17, size=12)


def test_a_sample_is_the_same_for_all(images: Path) -> None:
    one, other = (stream_of(images).sample(40, seed=2) for _ in range(2))
    assert one.shape == (40, 24)
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize("options", [{"buffer_rows": 0}, {"batch_size": 0}])
def test_nothing_at_a_time_is_refused(images: Path, options: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="must be at least 1; got buffer_rows="):
        stream_of(images, **options)


def test_training_from_the_stream_is_as_good_as_from_a_store(images: Path, tmp_path: Path) -> None:
    rows = stored(images, tmp_path / "acts")
    config = TrainConfig(steps=150, batch_size=40, lr=1e-2)
    found = []
    for source in (Store(tmp_path / "acts"), stream_of(images, buffer_rows=12 * T, batch_size=12)):
        sae = train(SAE(SAEConfig.of(24, 48, k=4), seed=1), source, config)
        found.append(evaluate(sae, [rows]).fvu)
    assert max(found) < 0.01  # 0.0005 and 0.001; before training 1


def test_training_resumes_exactly(images: Path, tmp_path: Path) -> None:
    """Stopped in the middle of a block, and gone on with in a new process's state."""

    def run(folder: Path, stop: int | None = None) -> SAE:
        def note(step: int, numbers: dict[str, float]) -> None:
            if step == stop:
                raise KeyboardInterrupt

        config = TrainConfig(steps=24, batch_size=20, lr=1e-3)
        sae = SAE(SAEConfig.of(24, 48, k=4), seed=1)
        return train(sae, stream_of(images), config, folder=folder, on_log=note, log_every=1)

    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "again", stop=11)
    again = run(tmp_path / "again")
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(tensor, again.state_dict()[name], equal_nan=True, msg=name)
