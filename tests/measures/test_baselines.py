"""Baselines: each on rows whose structure it must find, and with the face of an SAE."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vision_sae.errors import ConfigError, DataError, UnknownName
from vision_sae.measures import baselines
from vision_sae.measures.baselines.nonnegative import nonnegative_codes
from vision_sae.measures.case import Dictionary
from vision_sae.measures.reconstruction import reconstruction
from vision_sae.measures.stability import match

from .conftest import case_of


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def fvu(name: str, rows: Tensor, **options: int) -> float:
    return reconstruction(case_of(rows, baselines.fit(name, rows, **options)))["fvu"].value


@pytest.mark.parametrize("name", baselines.BASELINES)
def test_every_baseline_has_the_face_of_an_sae(name: str) -> None:
    rows = drawn(60, 5) + 2
    found = baselines.fit(name, rows, latents=8)
    assert isinstance(found, Dictionary)
    codes, x_hat = found(rows)
    assert torch.allclose(found.decode(found.encode(rows)), x_hat, atol=1e-5)
    assert codes.width == len(found.W_dec)
    assert bool((codes.values >= 0).all())
    assert 0 <= fvu(name, rows, latents=8) <= 1


@pytest.mark.parametrize("name", ["neurons", "pca", "ica"])
def test_signed_codes_in_two_halves_lose_nothing(name: str) -> None:
    rows = drawn(200, 4) @ drawn(4, 4, seed=1)
    found = baselines.fit(name, rows)
    assert found.encode(rows).width == 8
    assert int(found.encode(rows).l0.max()) == 4  # one half of each at a time
    assert fvu(name, rows) == pytest.approx(0, abs=1e-4)


def test_pca_keeps_the_largest_coefficients_of_each_row() -> None:
    rows = drawn(300, 6) * torch.tensor([9.0, 5, 1, 1, 1, 1])
    centred = rows - rows.mean(0)
    V = torch.linalg.svd(centred.double(), full_matrices=False).Vh.float()
    coefficients = centred @ V.T
    kept = coefficients.abs().topk(2, dim=1).values.square().sum()
    assert fvu("pca:2", rows) == pytest.approx(float(1 - kept / centred.square().sum()), abs=1e-4)
    assert fvu("pca:2", rows) < fvu("neurons:2", rows) + 1e-6


def test_ica_finds_independent_sources() -> None:
    generator = torch.Generator().manual_seed(0)
    sources = torch.rand(2000, 3, generator=generator) - 0.5
    A = drawn(3, 3, seed=2)
    found = baselines.fit("ica", sources @ A)
    assert match(found.W_dec[:3], A, absolute=True).mean > 0.99


@pytest.mark.parametrize("name", ["nmf", "semi-nmf"])
def test_parts_are_found_again(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    parts = torch.eye(6)[:3] + torch.eye(6).roll(3, 1)[:3]
    weights = torch.rand(300, 3, generator=generator)
    rows = weights * (torch.rand(300, 3, generator=generator) < 0.5) @ parts
    assert fvu(name, rows, latents=3) < 0.01
    if name == "nmf":
        assert match(baselines.fit(name, rows, latents=3).W_dec, parts).mean > 0.99


def test_nonnegative_codes_are_the_least_squares_ones() -> None:
    """By their optimality, for atoms at right angles about and for nearly parallel ones."""
    for offset in (0.0, 30.0):
        y, A = drawn(20, 6) + offset, drawn(4, 6, seed=1) + offset
        f = nonnegative_codes(y, A).double()
        slope = (y.double() - f @ A.double()) @ A.double().T  # of -|y - f A|^2 / 2
        scale = float(y.norm() * A.norm())
        assert bool((f >= 0).all()) and float(slope.max()) < 1e-6 * scale
        assert float((slope * (f > 0)).abs().max()) < 1e-6 * scale
    assert nonnegative_codes(y[:0], A).shape == (0, 4)


def test_kmeans_gives_each_row_one_centre() -> None:
    centres = torch.tensor([[0.0, 9], [9, 0], [-9, -9]])
    rows = centres.repeat(30, 1) + 0.1 * drawn(90, 2)
    found = baselines.fit("kmeans", rows, latents=3)
    assert match(found.W_dec, centres).mean > 0.999
    assert found.encode(rows).l0.tolist() == [1] * 90
    assert fvu("kmeans", rows, latents=3) < 0.01


def test_the_random_dictionary_is_a_floor_and_a_seed_repeats() -> None:
    rows = drawn(200, 8) @ drawn(8, 8, seed=3)
    assert fvu("pca:4", rows) < fvu("random:4", rows, latents=32) < 1
    one, again, other = (baselines.fit("random", rows, latents=32, seed=s) for s in (0, 0, 1))
    assert torch.equal(one.W_dec, again.W_dec)
    assert not torch.equal(one.W_dec, other.W_dec)


@given(st.sampled_from(["neurons", "pca", "semi-nmf", "random"]), st.integers(1, 6))
def test_a_row_keeps_no_more_than_k(name: str, k: int) -> None:
    rows = drawn(40, 6)
    found = baselines.fit(f"{name}:{k}", rows, latents=6)
    assert int(found.encode(rows).l0.max()) <= k


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("pcs", UnknownName, "no baseline 'pcs'; did you mean pca"),
        ("pca:x", ConfigError, "after the colon comes how many latents a row keeps"),
        ("pca:0", ConfigError, "after the colon comes how many latents a row keeps"),
        ("kmeans:4", ConfigError, "k-means keeps one latent per row; got 4"),
        ("pca:99", ConfigError, "a row cannot keep 99 of 8 latents"),
        ("nmf:99", ConfigError, "a row cannot keep 99 of 4 latents"),
    ],
)
def test_baselines_that_cannot_be(name: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        baselines.fit(name, drawn(20, 4))


def test_the_supervised_dictionary_says_the_labels_of_other_rows() -> None:
    about = [{"colour": "rgb"[i % 3], "shade": "dark" if i % 2 else "light"} for i in range(120)]
    atoms = drawn(5, 6) * 3
    hot = torch.tensor(
        [[i % 3 == 2, i % 3 == 1, i % 3 == 0, i % 2 == 1, i % 2 == 0] for i in range(120)]
    ).float()
    rows = hot @ atoms + 0.1 * drawn(120, 6, seed=4) + 1
    found = baselines.fit("supervised", rows[:90], about=about[:90])
    assert found.names == [  # type: ignore[attr-defined]
        ("colour", "b"), ("colour", "g"), ("colour", "r"), ("shade", "dark"), ("shade", "light"),
    ]  # fmt: skip
    assert float((found.encode(rows[90:]).to_dense() == hot[90:]).float().mean()) > 0.95
    assert reconstruction(case_of(rows[90:], found))["fvu"].value < 0.1


def test_the_supervised_dictionary_needs_labels_of_each_row() -> None:
    with pytest.raises(DataError, match="one row per image; got 20 rows of 0 images"):
        baselines.fit("supervised", drawn(20, 4))
    with pytest.raises(ConfigError, match="drop the k"):
        baselines.fit("supervised:4", drawn(20, 4))


def test_constant_rows_are_refused() -> None:
    with pytest.raises(DataError, match="fitted to rows that differ; got 5"):
        baselines.fit("pca", torch.ones(5, 3))
