"""Edits through an SAE touch the chosen tokens only, and do nothing when they should do nothing."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from vision_sae.adapters.toy import WIDTH, ToyAdapter
from vision_sae.errors import DataError
from vision_sae.model.edit import on_tokens, reconstruct
from vision_sae.model.hooks import capture, edit
from vision_sae.model.probing import probe_site
from vision_sae.model.sites import Site
from vision_sae.provenance import Tokens
from vision_sae.sae import SAE, SAEConfig

TOY = ToyAdapter()
IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
SITE = probe_site(TOY, "blocks.0", IMAGES[:1])
SITES = {
    "tokens": SITE,
    "sequence first": Site("", "tokens", 5, 7, 2, None, batch_axis=1),
    "map": Site("", "map", 5, 6, 0, (2, 3)),
    "vector": Site("", "vector", 5, 1, 0, None),
}
SHAPES = {
    "tokens": (3, 17, WIDTH),
    "sequence first": (7, 3, 5),
    "map": (3, 5, 2, 3),
    "vector": (3, 5),
}


def same(rows: Tensor) -> Tensor:
    return rows


@pytest.fixture(scope="module")
def sae() -> SAE:
    return SAE(SAEConfig.of(WIDTH, 48, "topk", 4)).eval()


@pytest.mark.parametrize("which", ["cls", "patches", "all"])
def test_no_change_leaves_the_model_s_output_bit_for_bit(which: Tokens) -> None:
    plain = TOY.run(IMAGES)
    with edit(TOY.model, "blocks.0", on_tokens(same, SITE, which)):
        assert torch.equal(TOY.run(IMAGES), plain)


@pytest.mark.parametrize("kind", SITES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_no_change_keeps_values_shape_and_strides(kind: str, dtype: torch.dtype) -> None:
    before = torch.randn(SHAPES[kind]).to(dtype)
    after = on_tokens(same, SITES[kind], "all")(before)
    assert torch.equal(after, before) and after.stride() == before.stride()


@pytest.mark.parametrize(
    ("which", "changed"), [("cls", [0]), ("patches", list(range(1, 17))), ("all", list(range(17)))]
)
def test_reconstruct_changes_the_chosen_tokens_only(
    sae: SAE, which: Tokens, changed: list[int]
) -> None:
    with capture(TOY.model, ["blocks.0"]) as acts:
        TOY.run(IMAGES)
    before = acts["blocks.0"]
    after = on_tokens(reconstruct(sae), SITE, which)(before)
    kept = sorted(set(range(17)) - set(changed))
    assert torch.equal(after[:, kept], before[:, kept])
    x_hat = sae(before[:, changed].reshape(-1, WIDTH)).x_hat
    assert torch.equal(after[:, changed].reshape(-1, WIDTH), x_hat)


def test_registers_stay_when_patches_change() -> None:
    site = SITES["sequence first"]
    after = on_tokens(torch.zeros_like, site, "patches")(torch.ones(7, 3, 5))
    assert after[:2].eq(1).all() and after[2:].eq(0).all()


def test_the_original_output_is_not_touched() -> None:
    before = torch.ones(SHAPES["map"])
    on_tokens(torch.zeros_like, SITES["map"], "all")(before)
    assert before.eq(1).all()


@pytest.mark.parametrize(
    ("site", "which", "message"),
    [
        (SITE, "pooled", "pooled tokens of 'blocks.0' are a mean"),
        (replace(SITE, prefix=0), "cls", "'blocks.0' has no class token"),
        (SITES["map"], "cls", "has no class token"),
    ],
)
def test_tokens_that_cannot_be_put_back_are_refused(site: Site, which: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        on_tokens(same, site, which)


def test_pooled_is_the_vector_itself_where_there_is_one() -> None:
    after = on_tokens(torch.zeros_like, SITES["vector"], "pooled")(torch.ones(3, 5))
    assert after.eq(0).all()
