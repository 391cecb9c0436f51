"""Cosines and matchings on cases with a known answer."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import Float
from torch import Tensor

from vision_sae.errors import DataError, MismatchError
from vision_sae.measures import stability as stab
from vision_sae.sae import SAE, SAEConfig

seeds = st.integers(0, 2**31)


def directions(latents: int, d: int = 8, seed: int = 0) -> Float[Tensor, "s d"]:
    return torch.randn(latents, d, generator=torch.Generator().manual_seed(seed))


@given(seed=seeds, latents=st.integers(1, 12), scale=st.floats(0.01, 100))
def test_an_sae_is_its_own_match_whatever_the_norms(seed: int, latents: int, scale: float) -> None:
    a = directions(latents, seed=seed)
    pairs = stab.match(a, a * scale)
    assert pairs.a.tolist() == pairs.b.tolist() == list(range(latents))
    assert pairs.mean == pytest.approx(1, abs=1e-5)
    assert stab.mmcs(a, a * scale) == pytest.approx(1, abs=1e-5)


@given(seed=seeds)
def test_the_order_of_latents_does_not_matter(seed: int) -> None:
    a, b = directions(9, seed=seed), directions(9, seed=seed + 1)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(seed))
    assert stab.match(a, a[order]).b.tolist() == order.argsort().tolist()
    one, other = stab.similarity(a, b), stab.similarity(a, b[order])
    assert one.as_dict() == pytest.approx(other.as_dict(), abs=1e-5)


@given(seed=seeds)
def test_an_opposite_direction_is_another_one_unless_asked(seed: int) -> None:
    a = directions(5, d=64, seed=seed)
    assert stab.match(a, -a, absolute=True).mean == pytest.approx(1, abs=1e-5)
    assert stab.match(a, -a).mean < 0.5
    assert stab.match(a, -a).above(0.7) == 0


@given(seed=seeds, m=st.integers(1, 7), n=st.integers(1, 7))
def test_a_matching_pairs_the_smaller_set_and_beats_the_order_it_came_in(
    seed: int, m: int, n: int
) -> None:
    a, b = directions(m, seed=seed), directions(n, seed=seed + 1)
    pairs, p = stab.match(a, b), min(m, n)
    assert len(set(pairs.a.tolist())) == len(set(pairs.b.tolist())) == p
    assert torch.equal(pairs.cosine, stab.cosines(a, b)[pairs.a, pairs.b])
    assert pairs.cosine.sum() >= stab.cosines(a, b)[:p, :p].diagonal().sum() - 1e-5
    assert pairs.mean <= 1e-6 + stab.mmcs(*((a, b) if m <= n else (b, a)))


@given(seed=seeds, entries=st.integers(1, 200))
def test_blocks_do_not_change_the_largest_cosines(seed: int, entries: int) -> None:
    a, b = directions(11, seed=seed), directions(13, seed=seed + 1)
    cos = stab.cosines(a, b)
    assert torch.allclose(stab.largest_cosines(a, b, entries=entries), cos.amax(1), atol=1e-6)
    own = stab.cosines(a, a) - 2 * torch.eye(11)
    assert torch.allclose(stab.largest_other_cosines(a, entries=entries), own.amax(1), atol=1e-6)


def test_geometry_of_atoms() -> None:
    sae = SAE(SAEConfig.of(3, 3, k=1))
    with torch.no_grad():
        sae.W_dec.copy_(torch.tensor([[1.0, 0, 0], [2.0, 0, 0], [0, 1.0, 0]]))
        sae.W_enc.copy_(torch.tensor([[3.0, 0, 0], [0, 0, 1.0], [0, -1.0, 0]]))
    assert stab.coherence(sae) == pytest.approx(2 / 3)
    assert stab.alignment(sae) == 0
    assert math.isnan(stab.coherence(SAE(SAEConfig.of(3, 1, k=1))))


def test_a_latent_without_a_direction_is_like_nothing() -> None:
    a = torch.tensor([[0.0, 0.0], [0.0, 3.0]])
    assert stab.cosines(a, a).tolist() == [[0, 0], [0, 1]]


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(MismatchError, match="width 3, the other 4"):
        stab.stability(SAE(SAEConfig.of(3, 2, k=1)), SAE(SAEConfig.of(4, 2, k=1)))
    with pytest.raises(DataError, match="NaN"):
        stab.match(torch.full((2, 2), torch.nan), torch.ones(2, 2))
    with pytest.raises(DataError, match="got 1"):
        stab.largest_other_cosines(torch.ones(1, 2))


def test_two_saes_by_their_atoms_and_by_their_encoders() -> None:
    a, b = (SAE(SAEConfig.of(16, s, k=2), seed=s) for s in (8, 12))
    with torch.no_grad():
        b.W_dec[2:10] = a.W_dec.flip(0)
    found = stab.stability(a, b)
    assert found.decoder.matched == pytest.approx(1, abs=1e-5)
    assert (found.decoder.above_07, found.decoder.above_09) == (1, 1)
    assert found.encoder.above_09 == 0 and found.encoder.matched < 0.7
    assert found.as_dict()["encoder"]["mmcs"] == found.encoder.mmcs
