"""Extraction over a folder of images: broken ones, interruptions, and what the store remembers."""

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from vision_sae.adapters.base import ModuleAdapter
from vision_sae.adapters.toy import ToyAdapter, to_input
from vision_sae.data import open_data
from vision_sae.errors import ConfigError, DataError, StoreError, UnknownName
from vision_sae.extract import extract
from vision_sae.model.adapter import Adapter, fingerprint
from vision_sae.model.hooks import capture
from vision_sae.model.probing import probe_site
from vision_sae.model.sites import select_tokens, to_tokens
from vision_sae.store import Store, StoreIndex, StoreWriter

IMAGES, SITE = 12, "blocks.0"
TRUNCATED, NO_IMAGE = 3, 7


def paint(folder: Path, images: int = IMAGES) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(images):
        Image.new("RGB", (20, 10), (20 * i, 255 - 20 * i, 7 * i)).save(folder / f"{i:02}.png")
    return folder


def spoil(folder: Path) -> Path:
    cut = folder / f"{TRUNCATED:02}.png"
    cut.write_bytes(cut.read_bytes()[:50])
    (folder / f"{NO_IMAGE:02}.png").write_text("not a picture")
    return folder


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return paint(tmp_path / "images")


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two images of [17 24] float32 each, so that a dozen images make a store of several shards."""

    def writer(folder: Path, index: StoreIndex, **options: Any) -> StoreWriter:
        index = index.model_copy(update={"chunk": 2})
        return StoreWriter(folder, index, **options)

    # the package has a function of the module's name
    monkeypatch.setattr(import_module("vision_sae.extract"), "StoreWriter", writer)


def run(images: Path, out: Path, adapter: Adapter | None = None, **options: Any) -> StoreIndex:
    adapter = adapter or ToyAdapter()
    return extract(adapter, open_data(str(images)), SITE, out, **{"batch_size": 5} | options)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def by_hand(images: Path, tokens: Any = "all") -> torch.Tensor:
    toy = ToyAdapter()
    batch = toy.prepare([item.open() for item in open_data(str(images)).items()])
    with torch.inference_mode(), capture(toy.model, [SITE]) as acts:
        toy.run(batch)
    site = probe_site(toy, SITE, batch[:1])
    return select_tokens(to_tokens(acts[SITE], site), site, tokens)


@pytest.mark.parametrize(
    ("tokens", "per_image", "prefix", "grid"),
    [
        ("all", 17, 1, (4, 4)),
        ("patches", 16, 0, (4, 4)),
        ("cls", 1, 1, None),
        ("pooled", 1, 0, None),
    ],
)
def test_a_store_holds_what_the_site_gives(
    images: Path, tmp_path: Path, tokens: Any, per_image: int, prefix: int, grid: Any
) -> None:
    index = run(images, tmp_path / "acts", tokens=tokens)
    store = Store(tmp_path / "acts")
    torch.testing.assert_close(store.acts(range(IMAGES)), by_hand(images, tokens))
    assert store.keys == [f"{i:02}" for i in range(IMAGES)]
    assert (index.tokens_per_image, index.prefix_tokens, index.grid) == (per_image, prefix, grid)
    where = index.provenance
    assert (where.model, where.site, where.tokens) == ("toy:0", SITE, tokens)
    assert where.fingerprint == fingerprint(ToyAdapter().model)
    assert open_data(where.data).name == str(images)


def test_broken_images_are_counted_named_and_leave_gaps(images: Path, tmp_path: Path) -> None:
    told: list[int] = []
    index = run(spoil(images), tmp_path / "acts", on_images=told.append)
    assert [text.split(":")[0] for text in index.skipped] == ["03", "07"]
    assert "not an image" in index.skipped[1]
    store = Store(tmp_path / "acts")
    kept = [i for i in range(IMAGES) if i not in (TRUNCATED, NO_IMAGE)]
    assert store.positions == kept and store.keys == [f"{i:02}" for i in kept]
    assert sum(told) == IMAGES


def test_a_broken_first_image_does_not_stop_the_rest(images: Path, tmp_path: Path) -> None:
    (images / "00.png").write_text("not a picture")
    assert run(images, tmp_path / "acts").images == IMAGES - 1


def test_strict_refuses_and_names_the_file(images: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="^03: "):
        run(spoil(images), tmp_path / "acts", strict=True)


def test_all_images_broken(tmp_path: Path) -> None:
    images = paint(tmp_path / "images", 2)
    for path in images.iterdir():
        path.write_text("not a picture")
    with pytest.raises(DataError, match=f"no readable image in {images}"):
        run(images, tmp_path / "acts")
    assert not (tmp_path / "acts").exists()


@pytest.mark.parametrize("forwards", [3, 6, 9])
def test_an_interrupted_run_goes_on_to_the_same_store(
    images: Path, tmp_path: Path, forwards: int
) -> None:
    run(spoil(images), tmp_path / "whole", batch_size=1)  # bits may depend on the batch
    with pytest.raises(MemoryError):
        run(images, tmp_path / "acts", Failing(forwards), batch_size=1)
    with pytest.raises(StoreError, match="is unfinished"):
        Store(tmp_path / "acts")
    told: list[int] = []
    run(images, tmp_path / "acts", batch_size=1, on_images=told.append)
    assert contents(tmp_path / "acts") == contents(tmp_path / "whole")
    assert told[0] > 0 and sum(told) == IMAGES


class Failing(ToyAdapter):
    """The toy model, out of memory after so many forward passes (of it, or of a copy of it)."""

    def __init__(self, forwards: int) -> None:
        super().__init__()
        self.left = forwards

    def run(self, batch: torch.Tensor) -> Any:
        self.left -= 1
        if self.left < 0:
            raise MemoryError
        return super().run(batch)


def test_a_finished_store_is_not_made_again(images: Path, tmp_path: Path) -> None:
    run(images, tmp_path / "acts")
    before = contents(tmp_path / "acts")
    assert run(images, tmp_path / "acts", Failing(2)).complete  # a copy is probed twice
    assert contents(tmp_path / "acts") == before


def test_other_weights_are_another_job(images: Path, tmp_path: Path) -> None:
    run(images, tmp_path / "acts")
    other = ToyAdapter(seed=1)
    other.name = "toy:0"
    with pytest.raises(StoreError, match="another job .fingerprint"):
        run(images, tmp_path / "acts", other)
    assert run(images, tmp_path / "acts", other, overwrite=True).complete


def test_activations_that_are_no_numbers_name_the_image(images: Path, tmp_path: Path) -> None:
    toy = ToyAdapter()
    with torch.no_grad():
        toy.model.get_submodule("blocks.0.mlp.0").weight.fill_(torch.nan)  # type: ignore[union-attr]
    with pytest.raises(DataError, match="NaN .* first '00', at site 'blocks.0'"):
        run(images, tmp_path / "acts", toy)


def test_extracting_leaves_a_model_in_training_as_it_was(images: Path, tmp_path: Path) -> None:
    """Batch norm would learn from a forward pass in training mode, and change the fingerprint."""
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 4, 4), torch.nn.BatchNorm2d(4))
    adapter = ModuleAdapter(model.train(), to_input, name="mine")
    before = fingerprint(model)
    extract(adapter, open_data(str(images)), "1", tmp_path / "acts")
    assert fingerprint(model) == before and model[1].training
    assert Store(tmp_path / "acts").index.provenance.fingerprint == before


def test_a_batch_of_nothing_is_refused(images: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="batch_size must be at least 1; got 0"):
        run(images, tmp_path / "acts", batch_size=0)
    assert not (tmp_path / "acts").exists()


def test_a_site_that_is_not_there_writes_nothing(images: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="did you mean blocks.1"):
        extract(ToyAdapter(), open_data(str(images)), "block.1", tmp_path / "acts")
    assert not (tmp_path / "acts").exists()
