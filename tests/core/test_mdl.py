"""Description length of codes whose entropy is known."""

import math

import pytest
import torch

from vision_sae.measures.mdl import BINS, description_length, mdl
from vision_sae.sparse.codes import Codes


def test_bits_of_which_and_of_how_strong() -> None:
    """Latent 0 is on for half of the rows, at four equally frequent levels; latent 1 never."""
    n = 64
    on = torch.arange(n) % 2 == 0
    level = (torch.arange(n) // 2) % 4
    dense = torch.stack([on * (level + 0.5) / 4, torch.zeros(n)], 1)
    codes = Codes.of_dense(dense)
    assert description_length(codes, level[on], 4) == pytest.approx(1 + 0.5 * 2)


def test_a_latent_that_is_always_equally_on_says_nothing() -> None:
    codes = Codes.of_dense(torch.ones(10, 1))
    found = mdl(codes, torch.ones(10, 4), lambda c: c.to_dense().expand(-1, 4))
    assert found.bits == 0.0
    assert [one.bins for one in found.curve] == list(BINS)


def test_more_bins_cost_more_and_err_less() -> None:
    dense = torch.rand(400, 3, generator=torch.Generator().manual_seed(0))
    found = mdl(Codes.of_dense(dense), dense, lambda c: c.to_dense(), tolerance=0.02)
    bits = [one.bits for one in found.curve]
    errors = [one.error for one in found.curve]
    assert bits == sorted(bits) and errors == sorted(errors, reverse=True)
    chosen = next(one for one in found.curve if one.bins == found.bins)
    assert chosen.error < 0.02 and found.bits == min(
        one.bits for one in found.curve if one.error < 0.02
    )
    assert found.bits_per_dimension == pytest.approx(found.bits / 3)


def test_an_sae_that_is_not_precise_has_no_length() -> None:
    dense = torch.rand(50, 3)
    found = mdl(Codes.of_dense(dense), dense + 5, lambda c: c.to_dense())
    assert math.isnan(found.bits)
    assert "the SAE itself is not so precise" in found.reason
