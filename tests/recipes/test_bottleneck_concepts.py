"""Concept scores: pooled as told, the same from a model and from a store, checked for origin."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vision_sae.adapters.toy import ToyAdapter
from vision_sae.data import Item
from vision_sae.data.indexed import IndexedSource
from vision_sae.errors import ConfigError, DataError, MismatchError
from vision_sae.extract import extract
from vision_sae.model.adapter import fingerprint
from vision_sae.provenance import Provenance, Tokens
from vision_sae.recipes.bottleneck.concepts import (
    Reader,
    check_pool,
    concepts_of_images,
    concepts_of_store,
    pooled,
    side_by_side,
)
from vision_sae.sae import SAE, SAEConfig
from vision_sae.sparse.codes import Codes
from vision_sae.store import Store

SITE = "blocks.0"


class Colours(IndexedSource):
    """Some plain pictures; number 3 cannot be read."""

    name, gives = "colours", "images"

    def __len__(self) -> int:
        return 7

    def item(self, i: int) -> Item:
        def opened() -> Any:
            if i == 3:
                raise DataError("broken")
            return Image.new("RGB", (16, 16), (30 * i, 255 - 30 * i, 90))

        return Item(f"c{i}", {"parity": "odd" if i % 2 else "even"}, opened)


def reader(
    adapter: ToyAdapter, tokens: Tokens = "patches", site: str = SITE, seed: int = 0
) -> Reader:
    sae = SAE(SAEConfig.of(24, 60, "relu"), seed=seed).eval()
    sae.provenance = Provenance(
        model=adapter.name, fingerprint=fingerprint(adapter.model), site=site, tokens=tokens,
        data="colours",
    )  # fmt: skip
    return Reader.of(sae)


@pytest.fixture
def adapter() -> Iterator[ToyAdapter]:
    yield ToyAdapter(0)


@given(st.integers(0, 2**16), st.sampled_from(["max", "mean", "cls"]), st.booleans())
def test_pooling_is_that_of_the_dense_codes(seed: int, pool: Any, signed: bool) -> None:
    dense = torch.randn(12, 5, generator=torch.Generator().manual_seed(seed))
    dense = dense * (dense.abs() > 0.8) if signed else (dense - 0.5).relu()
    tokens = dense.view(4, 3, 5)
    largest = tokens.gather(1, tokens.abs().argmax(1, keepdim=True))[:, 0]
    slow = {"max": largest, "mean": tokens.mean(1), "cls": tokens[:, 0]}[pool]
    found = pooled(Codes.of_dense(dense), 3, pool)
    np.testing.assert_allclose(found.toarray(), slow.double().numpy(), atol=1e-6)


@pytest.mark.parametrize("pool", ["max", "mean"])
def test_a_model_gives_the_same_as_its_store(adapter: ToyAdapter, pool: Any, tmp_path: Any) -> None:
    live = concepts_of_images(adapter, Colours(), [reader(adapter)], pool=pool, batch_size=2)
    extract(adapter, Colours(), SITE, tmp_path / "acts", tokens="patches")
    stored = concepts_of_store(reader(adapter), Store(tmp_path / "acts"), pool=pool)
    assert live.keys == stored.keys == ["c0", "c1", "c2", "c4", "c5", "c6"]
    assert live.about == stored.about and live.codes.nnz > 0
    np.testing.assert_allclose(live.codes.toarray(), stored.codes.toarray(), atol=1e-5)
    assert live.skipped == ("c3: broken",) and live.parts == stored.parts


def test_several_sites_stand_side_by_side(adapter: ToyAdapter) -> None:
    both = [reader(adapter), reader(adapter, "cls", "blocks.1", seed=1)]
    together = concepts_of_images(adapter, Colours(), both)
    apart = [concepts_of_images(adapter, Colours(), [one]) for one in both]
    assert together.codes.shape == (6, 120)
    assert (together.codes != side_by_side(*apart).codes).nnz == 0
    with pytest.raises(MismatchError, match="6 images against 2"):
        side_by_side(apart[0], apart[1].take([0, 1]))


def test_an_sae_of_another_model_or_site_is_refused(adapter: ToyAdapter) -> None:
    with pytest.raises(MismatchError, match="does not belong to toy:1: model 'toy:0'"):
        concepts_of_images(ToyAdapter(1), Colours(), [reader(adapter)])
    with pytest.raises(MismatchError, match="was trained at 'blocks.0', not at 'blocks.1'"):
        Reader.of(reader(adapter).sae, site="blocks.1")
    silent = SAE(SAEConfig.of(9, 20, "relu"))
    with pytest.raises(ConfigError, match="does not say at which site"):
        Reader.of(silent)
    with pytest.raises(MismatchError, match=r"reads width 9, blocks.0 of toy:0 gives 24"):
        concepts_of_images(adapter, Colours(), [Reader.of(silent, site=SITE)])


def test_a_missing_class_token_and_an_unknown_pool_are_refused(adapter: ToyAdapter) -> None:
    with pytest.raises(DataError, match="have no class token .16 tokens per image."):
        concepts_of_images(adapter, Colours(), [reader(adapter)], pool="cls")
    with pytest.raises(ConfigError, match="pool must be max, mean, cls; got 'sum'"):
        check_pool("sum", 0, 16)


def test_images_without_a_concept_are_told(adapter: ToyAdapter) -> None:
    quiet = reader(adapter)
    with torch.no_grad():
        quiet.sae.b_enc -= 1e3
    found = concepts_of_images(adapter, Colours(), [quiet])
    assert found.blank == list(range(6)) and found.codes.nnz == 0
