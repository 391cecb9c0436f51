"""Splicing on cases with known answers: an SAE that gives its input, and one that gives nothing."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from vision_sae.data import open_data
from vision_sae.errors import DataError
from vision_sae.extract import extract
from vision_sae.jobs import splice_sae
from vision_sae.measures.splice import Spliced, splice
from vision_sae.model.adapter import load_adapter
from vision_sae.model.probing import probe_site
from vision_sae.sae import SAE, SAEConfig
from vision_sae.store import Store

TOY = load_adapter("toy")
SITE = "blocks.1"


def batches() -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        pictures = torch.rand(8, 3, 16, 16, generator=generator) * 2 - 1
        yield pictures, torch.arange(8) % 3


def lossless(d: int) -> SAE:
    """relu(x) - relu(-x) = x."""
    sae = SAE(SAEConfig.of(d, 2 * d, "topk", k=2 * d))
    with torch.no_grad():
        sae.W_enc.copy_(torch.cat([torch.eye(d), -torch.eye(d)]))
        sae.W_dec.copy_(sae.W_enc)
    return sae


def spliced(sae_of: object, mean: float = 0.5) -> Spliced:
    first, _ = next(batches())
    site = probe_site(TOY, SITE, first[:1])
    sae = sae_of(site.width)  # type: ignore[operator]
    texts = TOY.embed_texts(["red", "green", "blue"])  # type: ignore[attr-defined]
    return splice(TOY, sae, site, "all", torch.full((site.width,), mean), texts, batches())


def test_a_lossless_sae_recovers_everything() -> None:
    found = spliced(lossless)
    assert found.images == 16
    assert found.spliced.accuracy == found.original.accuracy
    assert found.spliced.loss == pytest.approx(found.original.loss, abs=1e-3)
    assert found.original.kl == 0 and found.spliced.kl < 1e-3 < found.zero.kl
    for floor in ("mean", "zero"):
        assert found.recovered("loss", floor) == pytest.approx(1, abs=1e-3)
        assert found.recovered("kl", floor) == pytest.approx(1, abs=1e-3)


def test_an_sae_that_gives_nothing_is_the_ablation() -> None:
    def silent(d: int) -> SAE:
        sae = lossless(d)
        sae.requires_grad_(False).W_dec.zero_()
        return sae

    found = spliced(silent)
    assert found.spliced.loss == pytest.approx(found.zero.loss)
    assert found.recovered("kl", "zero") == pytest.approx(0, abs=1e-9)


def test_an_ablation_that_changes_nothing_has_nothing_to_recover() -> None:
    same = Spliced(*[spliced(lossless).original] * 4, images=16)
    assert str(same.recovered("kl")) == "nan"


def test_no_images_is_an_error() -> None:
    first, _ = next(batches())
    site = probe_site(TOY, SITE, first[:1])
    texts = TOY.embed_texts(["red"])  # type: ignore[attr-defined]
    with pytest.raises(DataError, match="no readable, labelled image"):
        splice(TOY, lossless(site.width), site, "all", torch.zeros(site.width), texts, [])


def test_images_left_out_are_counted_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for label in ("red", "blue"):
        (tmp_path / "data" / label).mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (16, 16), label).save(tmp_path / "data" / label / f"{i}.png")
    source = open_data(str(tmp_path / "data"))
    extract(TOY, source, SITE, tmp_path / "acts", tokens="all")
    store = Store(tmp_path / "acts")
    sae = lossless(store.width)
    sae.provenance = store.index.provenance
    (tmp_path / "data" / "red" / "1.png").write_bytes(b"no picture")
    with caplog.at_level(logging.WARNING):
        found = splice_sae(TOY, sae, store, source=source)
    assert found.images == 5
    assert len(found.skipped) == 1 and "red/1" in found.skipped[0]
    assert "left out of splicing: " in caplog.text
