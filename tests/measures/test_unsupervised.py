"""Measures without labels, each on a case whose answer is known, and against a slow twin."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from vision_sae.errors import DataError
from vision_sae.measures.agreement import agreement
from vision_sae.measures.case import Case, Layout, Sample
from vision_sae.measures.cknna import alignment, cknna, hsic, nearest
from vision_sae.measures.geometry import geometry, mean_squared_cosine
from vision_sae.measures.latents import ImageCodes, image_codes
from vision_sae.measures.monosemanticity import (
    mean_cosine,
    monosemanticity,
    ms_of_top,
    ms_scores,
    sharing,
    uniqueness,
)
from vision_sae.measures.seeds import seeds
from vision_sae.measures.spatial import Limits, morans_i, morans_of_latents, queen, spatial
from vision_sae.measures.splice import Outcome, Spliced
from vision_sae.measures.splicing import splicing
from vision_sae.measures.suite import MEASURES, measured
from vision_sae.measures.visaebench import fvu
from vision_sae.sparse.codes import Codes

from .conftest import Planted, case_of, identity


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def of_images(dense: Tensor) -> ImageCodes:
    return image_codes(Codes.of_dense(dense), 1)


# --- geometry


def test_orthogonal_atoms_have_no_nonorthogonality() -> None:
    case = case_of(drawn(4, 5), Planted(lambda x: x, 3 * torch.eye(5)))
    assert geometry(case)["nonorthogonality"].value == pytest.approx(0, abs=1e-12)


def test_copies_of_one_atom_have_the_most_and_zero_atoms_are_left_out() -> None:
    W = torch.cat([torch.ones(4, 3), torch.zeros(2, 3)])
    found = geometry(case_of(drawn(4, 3), Planted(lambda x: x @ W.T, W)))["nonorthogonality"]
    assert (found.value, found.n) == (pytest.approx(1), 4)


def test_a_single_atom_has_no_nonorthogonality_and_says_why() -> None:
    found = geometry(case_of(drawn(4, 3), Planted(lambda x: x[:, :1], torch.ones(1, 3))))
    assert "two atoms are needed" in str(found["nonorthogonality"].reason)


@given(st.integers(2, 9), st.integers(1, 6), st.integers(0, 99))
def test_nonorthogonality_equals_the_mean_over_pairs(s: int, d: int, seed: int) -> None:
    atoms = normalize(drawn(s, d, seed=seed).double(), dim=1)
    cos = (atoms @ atoms.T).square()
    slow = (cos.sum() - cos.trace()) / (s * (s - 1))
    assert mean_squared_cosine(atoms) == pytest.approx(float(slow), abs=1e-9)


# --- CKNNA


def slow_alignment(x: Tensor, f: Tensor, k: int) -> float:
    """By loops over pairs."""
    n = len(x)
    K, L = (a.double() @ a.double().T for a in (x, f))
    near = [
        [set(sorted((j for j in range(n) if j != i), key=lambda j: -M[i, j])[:k]) for i in range(n)]
        for M in (K, L)
    ]

    def kept(M: Tensor, which: list[list[set[int]]]) -> Tensor:
        out = torch.zeros(n, n).double()
        for i in range(n):
            for j in range(n):
                if all(j in one[i] for one in which):
                    out[i, j] = M[i, j]
        return out

    def unbiased(A: Tensor, B: Tensor) -> float:
        one = torch.ones(n).double()
        middle = (one @ A @ one) * (one @ B @ one) / ((n - 1) * (n - 2))
        last = 2 / (n - 2) * (one @ A @ B @ one)
        return float(((A @ B).trace() + middle - last) / (n * (n - 3)))

    K_both, L_both = kept(K, near), kept(L, near)
    K_own, L_own = kept(K, near[:1]), kept(L, near[1:])
    return unbiased(K_both, L_both) / math.sqrt(unbiased(K_own, K_own) * unbiased(L_own, L_own))


def test_cknna_equals_its_definition() -> None:
    x, f = drawn(16, 5), drawn(16, 7, seed=1)
    assert alignment(x, f, 4) == pytest.approx(slow_alignment(x, f, 4))


def test_cknna_of_rows_with_themselves_and_of_a_rotation_is_one() -> None:
    x = drawn(60, 6)
    Q = torch.linalg.qr(drawn(6, 6, seed=2)).Q
    case = case_of(x, Planted(lambda x: 3 * x @ Q, Q.T))
    assert cknna(case)["cknna"].value == pytest.approx(1, abs=1e-5)
    assert cknna(case)["cknna"].n == 60


def test_cknna_of_unrelated_codes_is_near_zero() -> None:
    x = drawn(400, 30)
    other = drawn(400, 30, seed=5)
    found = cknna(case_of(x, Planted(lambda rows: other[: len(rows)], torch.eye(30))))
    assert abs(found["cknna"].value) < 0.1


def test_cknna_refuses_few_rows_and_dead_codes_have_a_reason() -> None:
    with pytest.raises(DataError, match="11 rows; CKNNA needs at least 12"):
        cknna(case_of(drawn(11, 3)))
    dead = cknna(case_of(drawn(20, 3), Planted(torch.zeros_like, torch.eye(3))))
    assert "all alike" in str(dead["cknna"].reason)


def test_each_row_has_its_nearest_others_and_hsic_ignores_diagonals() -> None:
    x = torch.tensor([[1.0, 0], [1, 0.1], [0, 1], [0.1, 1]])
    assert nearest(x @ x.T, 1).nonzero().tolist() == [[0, 1], [1, 0], [2, 3], [3, 2]]
    K = drawn(6, 6).double()
    assert hsic(K + 5 * torch.eye(6).double(), K) == pytest.approx(float(hsic(K, K)))


# --- MonoSemanticity and uniqueness


def slow_ms(dense: Tensor, E: Tensor) -> Tensor:
    """Pair by pair, with the min-max scaling over all images."""
    found = []
    for column in dense.T.double():
        span = column.max() - column.min()
        a = (column - column.min()) / span if span > 0 else torch.zeros_like(column)
        weights = (a[:, None] * a).triu(1)
        total = weights.sum()
        cos = E.double() @ E.double().T
        found.append(float((weights * cos).sum() / total) if total > 0 else math.nan)
    return torch.tensor(found)


@given(st.integers(2, 12), st.integers(1, 5), st.integers(0, 999), st.floats(-1, 2))
@settings(max_examples=60)
def test_ms_without_a_matrix_of_pairs_equals_the_slow_twin(
    images: int, s: int, seed: int, shift: float
) -> None:
    dense = (drawn(images, s, seed=seed) + shift).relu()  # some fire on all images, some on none
    E = normalize(drawn(images, 3, seed=seed + 1), dim=1)
    fast, slow = ms_scores(of_images(dense), E), slow_ms(dense, E)
    assert torch.allclose(fast.float(), slow.float(), atol=1e-4, equal_nan=True)


def test_ms_does_not_depend_on_the_size_of_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    dense, E = drawn(30, 9).relu(), normalize(drawn(30, 4, seed=1), dim=1)
    whole = ms_scores(of_images(dense), E)
    monkeypatch.setattr("vision_sae.measures.monosemanticity.BLOCK", 1)
    assert torch.allclose(ms_scores(of_images(dense), E), whole)


def test_ms_is_one_for_a_latent_of_alike_images_and_the_floor_is_all_pairs() -> None:
    E = torch.eye(4)[[0, 0, 0, 1, 2, 3]]
    dense = torch.tensor([[3.0, 1, 0], [2, 0, 0], [1, 0, 0], [0, 1, 0], [0, 2, 0], [0, 0, 0]])
    found = monosemanticity(case_of(dense, identity(3), embeddings=E))
    assert found["monosemanticity_best"].value == pytest.approx(1)
    assert found["monosemanticity"].value == pytest.approx(0.5)  # the second sees orthogonal ones
    assert found["monosemanticity"].n == 2  # the third is dead
    assert found["monosemanticity_floor"].value == pytest.approx(3 / 15)
    assert mean_cosine(E) == pytest.approx(3 / 15)


def test_dead_dictionaries_have_no_ms_and_say_why() -> None:
    case = case_of(drawn(5, 3), Planted(torch.zeros_like, torch.eye(3)), embeddings=torch.eye(5))
    assert "no latent fires on two images" in str(monosemanticity(case)["monosemanticity"].reason)
    assert "no latent fires" in str(monosemanticity(case)["monosemanticity_best"].reason)


def test_ms_of_top_images_counts_their_pairs_only() -> None:
    dense = torch.cat([torch.full((16, 1), 2.0), torch.ones(10, 1), torch.zeros(1, 1)])
    E = torch.cat([torch.eye(2)[:1].expand(16, 2), torch.eye(2)[1:].expand(11, 2)])
    assert ms_of_top(of_images(dense), E).tolist() == pytest.approx([1.0])
    few = ms_of_top(of_images(drawn(40, 9).relu()), normalize(drawn(40, 3), dim=1), latents=4)
    assert len(few) == 4


def slow_sharing(dense: Tensor, top: int) -> tuple[list[float], float]:
    sets = []
    for column in dense.T:
        order = column.argsort(descending=True, stable=True)
        ids = [i for i in order.tolist() if column[i] > 0]
        if len(ids) >= 2:
            sets.append(set(ids[:top]))
    J = [[len(a & b) / len(a | b) for b in sets] for a in sets]
    n = len(sets)
    best = [max(J[i][j] for j in range(n) if j != i) for i in range(n)]
    return best, sum(J[i][j] for i in range(n) for j in range(n) if i != j) / (n * (n - 1))


@given(st.integers(0, 999), st.integers(1, 5))
def test_sharing_equals_sets_of_images(seed: int, block: int) -> None:
    dense = (drawn(14, 7, seed=seed) - 0.3).relu()
    found = sharing(of_images(dense), top=4, block=block)
    assert found is not None
    best, mean = slow_sharing(dense, 4)
    assert found.largest.tolist() == pytest.approx(best)
    assert found.mean == pytest.approx(mean)


def test_copies_of_a_latent_are_not_unique_and_separate_ones_are() -> None:
    x = torch.eye(3).repeat(3, 1)
    assert uniqueness(case_of(x))["uniqueness"].value == 1
    twice = Planted(lambda x: x.repeat(1, 2), torch.eye(3).repeat(2, 1))
    assert uniqueness(case_of(x, twice))["uniqueness"].value == 0
    dead = uniqueness(case_of(x, Planted(torch.zeros_like, torch.eye(3))))
    assert "fewer than two latents" in str(dead["jaccard"].reason)


# --- Moran's I


def test_morans_i_of_a_checkerboard_and_of_halves() -> None:
    rook = torch.tensor([[(i + j) % 2 for j in range(4)] for i in range(4)]).float()
    halves = torch.tensor([[float(j < 2) for j in range(4)] for _ in range(4)])
    found = morans_i(torch.stack([rook.flatten(), halves.flatten(), torch.ones(16)]), (4, 4))
    # of a cell's neighbours, those beside differ (48 ordered pairs), diagonal ones agree (36)
    assert found[0] == pytest.approx((36 - 48) / 84)
    across = 2 * (4 + 2 * 3)  # ordered pairs between the halves
    assert found[1] == pytest.approx((84 - 2 * across) / 84)
    assert found[2].isnan()
    assert int(queen((4, 4)).sum()) == 84


def slow_morans(dense: Tensor, grid: tuple[int, int], limits: Limits) -> dict[int, float]:
    """[images tokens latents] with one prefix token, image by image in batches of 64."""
    W = queen(grid)
    p = len(W)
    sums: dict[int, list[float]] = {}
    images, _, s = dense.shape
    for first in range(0, images, 64):
        full = {j for j, found in sums.items() if len(found) >= limits.most_images}
        for i in range(first, min(images, first + 64)):
            for j in set(range(s)) - full:
                y = dense[i, 1:, j].double()
                active = int((y != 0).sum())
                if limits.least_active <= active <= int(limits.largest_share * p):
                    y = y - y.mean()
                    value = float(y @ W @ y / (y @ y) * p / W.sum())
                    sums.setdefault(j, []).append(value)
    return {
        j: sum(found) / len(found) for j, found in sums.items() if len(found) >= limits.least_images
    }


def test_morans_i_of_latents_equals_maps_one_by_one() -> None:
    x = (drawn(200 * 10, 5) + torch.tensor([-1.5, -0.5, 0, 0.5, 2])).relu()
    case = case_of(x, layout=Layout(10, 1, (3, 3)))
    limits = Limits(least_active=2, least_images=20, most_images=70)
    found = morans_of_latents(case.on_test, limits)
    slow = slow_morans(x.view(200, 10, 5), (3, 3), limits)
    assert found.tolist() == pytest.approx([slow[j] for j in sorted(slow)])


def test_local_latents_are_local_and_scattered_ones_are_not() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.zeros(60, 8, 8, 2)
    maps[:, 2:5, 3:6, 0] = 1.0
    maps[..., 1] = (torch.rand(60, 8, 8, generator=generator) < 0.2).float()
    case = case_of(maps.view(-1, 2), layout=Layout(64, 0, (8, 8)))
    found = spatial(case)
    assert found["non_local"].value == 0.5
    assert found["morans_i"].n == 2
    assert 0.2 < found["morans_i"].value < 0.5


def test_too_few_maps_are_refused_with_their_number() -> None:
    case = case_of(drawn(30 * 9, 2), layout=Layout(9, 0, (3, 3)))
    with pytest.raises(DataError, match="no latent has 50 maps with 5 active patches to 90%"):
        spatial(case)


# --- agreement of probes


def two_classes(n: int = 60) -> tuple[Tensor, list[dict[str, str]]]:
    side = torch.tensor([1.0, -1.0]).repeat(n // 2)
    rows = torch.stack([side, 0.3 * drawn(n)], dim=1)
    return rows, [{"label": "a" if one > 0 else "b"} for one in side]


def test_a_probe_agrees_with_itself_on_perfect_reconstructions() -> None:
    rows, about = two_classes()
    found = agreement(case_of(rows, about=about, label="label"))
    assert (found["probe_agreement"].value, found["probe_kl"].value) == (1, pytest.approx(0))


def test_reconstructions_on_the_other_side_disagree() -> None:
    rows, about = two_classes()
    flipped = Planted(lambda x: x, torch.diag(torch.tensor([-1.0, 1.0])))
    found = agreement(case_of(rows, flipped, about=about, label="label"))
    assert found["probe_agreement"].value == 0
    assert found["probe_kl"].value > 1


def test_a_probe_needs_two_classes() -> None:
    rows, _ = two_classes()
    case = case_of(rows, about=[{"label": "a"}] * len(rows), label="label")
    with pytest.raises(DataError, match="two values of 'label' with 5 images each"):
        agreement(case)


# --- seeds and splicing


class Encoded(Planted):
    def __init__(self, W: Tensor) -> None:
        super().__init__(lambda x: x @ W.T, W)
        self.W_enc = W


def test_a_permuted_copy_is_as_stable_as_can_be() -> None:
    W = torch.linalg.qr(drawn(6, 6)).Q
    case = case_of(drawn(5, 6), Encoded(W), seeds=[Encoded(W[torch.randperm(6)])])
    found = seeds(case)
    assert [found[n].value for n in ("stability", "shared", "stability_mmcs")] == pytest.approx(
        [1, 1, 1], abs=1e-5
    )


def test_half_of_the_latents_are_shared() -> None:
    W, other = torch.eye(8)[:4], torch.eye(8)[[0, 1, 6, 7]]
    found = seeds(case_of(drawn(5, 8), Encoded(W), seeds=[Encoded(other)]))
    assert (found["stability"].value, found["shared"].value) == (0.5, 0.5)


def test_a_dictionary_without_encoder_rows_says_so() -> None:
    found = seeds(case_of(drawn(5, 6), identity(6), seeds=[identity(6)]))
    assert found["shared"].reason == "it has no encoder rows"
    assert found["stability"].value == pytest.approx(1)


def test_splicing_tells_what_splice_found() -> None:
    outcome = [Outcome(a, 1.0, kl) for a, kl in ((0.8, 0.0), (0.6, 0.5), (0.1, 3), (0.2, 2))]
    case = case_of(drawn(5, 3), splicing=lambda: Spliced(*outcome, images=50))
    found = splicing(case)
    assert (found["zero_shot"].value, found["zero_shot_kl"].value) == (0.6, 0.5)
    assert found["zero_shot_recovered"].value == pytest.approx(2 / 3)


def test_a_mean_that_does_no_harm_leaves_nothing_to_recover() -> None:
    outcome = [Outcome(0.5, 1.0, 0.0)] * 4
    found = splicing(case_of(drawn(5, 3), splicing=lambda: Spliced(*outcome, images=50)))
    assert "nothing is to recover" in str(found["zero_shot_recovered"].reason)


# --- ViSAEBench's, and the table as a whole


def test_visaebench_fvu_forgives_a_constant_error() -> None:
    x = drawn(50, 4)
    shifted = Planted(lambda x: x, torch.eye(4))
    shifted.decode = lambda codes: codes.to_dense() + 3  # type: ignore[method-assign]
    assert fvu(case_of(x, shifted))["visaebench.fvu"].value == pytest.approx(0, abs=1e-9)
    half = Planted(lambda x: x, torch.eye(4) / 2)
    assert fvu(case_of(x, half))["visaebench.fvu"].value == pytest.approx(0.25)


def test_every_measure_gives_a_score_or_a_reason_on_a_bare_case() -> None:
    case = case_of(drawn(20, 4))
    for measure in MEASURES:
        found = measured(case, measure)
        assert list(found) == list(measure.scores)
        assert all(score.defined or score.reason for score in found.values())


def test_measures_on_images_that_differ_from_the_fitted_ones() -> None:
    rows, about = two_classes()
    fit, test = Sample(rows, about=about), Sample(rows[:7], about=about[:7])
    assert agreement(Case("c", identity(2), fit, test, label="label"))["probe_kl"].n == 7
