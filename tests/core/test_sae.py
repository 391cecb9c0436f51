"""The module and its config: what is accepted, how it starts, thresholds, statistics of rows."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vision_sae import families, nest
from vision_sae.errors import ConfigError, DataError
from vision_sae.sae import SAE, SAEConfig
from vision_sae.sparse.codes import Codes
from vision_sae.statistics import centre, geometric_median, kmeans


@given(d=st.integers(1, 16), s=st.integers(1, 40), data=st.data())
def test_any_config_goes_through_json(d: int, s: int, data: st.DataObject) -> None:
    family = data.draw(st.sampled_from(["topk", "batchtopk", "abstopk"]))
    k = data.draw(st.integers(1, s))
    config = SAEConfig.of(d, s, family, k, rescale=data.draw(st.booleans()), atoms="free")
    assert SAEConfig.model_validate_json(config.model_dump_json()) == config


NO_K = "the relu family has no k; it has coefficient, p"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 17}, r"k must lie in 1\.\.16 .*got 17"),
        ({"k": 2, "anneal_from": 17}, r"k must lie in 1\.\.16 .*got 17"),
        ({"k": 0}, r"k: .*greater than or equal to 1; got 0"),
        ({"family": "topp"}, r"no family 'topp'; there are: topk, batchtopk, abstopk"),
        ({"family": "relu", "k": 3}, NO_K),
        ({"family": "groupmax", "k": 3}, r"k must divide the 16 latents; got 3"),
        ({"family": "mp", "k": 17}, r"k must lie in 1\.\.16 .*got 17"),
        ({"k": 2, "kk": 3}, r"kk: Extra inputs are not permitted; got 3"),
        ({"k": 2, "skip": True}, "skip is for transcoders: set d_out"),
        ({"k": 2, "d_out": 3, "tied": True}, "a transcoder .d_out. has tied=False"),
        ({"k": 2, "d_out": 3, "rows": "layer_norm"}, "a transcoder .* rows='none'"),
        (
            {"k": 2, "dictionary": {"kind": "archetypal"}, "atoms": "unit"},
            "an archetypal dictionary has tied=False and atoms='free'",
        ),
        ({"family": "mp", "k": 2, "tied": False}, "matching pursuit has tied=True"),
        ({"family": "jumprelu", "rescale": True}, "rescale is for families whose latents compete"),
        ({"k": 2, "nest": {"kind": "k", "ks": ()}}, r"nest\.k\.ks: .*at least 1 item"),
        (
            {"k": 4, "nest": {"kind": "k", "ks": (1, 2), "own": True}},
            r"nest\.own=True is for topk with the largest k of the nest; got topk, k=4, .*\[1, 2\]",
        ),
        (
            {"k": 2, "nest": {"kind": "k", "ks": (1, 2), "weighting": "balanced"}},
            "weighting='balanced' is for nests with own=True",
        ),
        (
            {"k": 2, "nest": {"kind": "k", "ks": (1, 2), "weighting": (1, 2, 3)}},
            "weighting has 3 numbers for 2 ks",
        ),
        ({"family": "jumprelu", "kernel": "box"}, r"kernel: Input should be 'rectangle', .*'box'"),
    ],
)
def test_a_bad_config_says_what_is_allowed(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SAEConfig.of(8, 16, **options)


def test_an_unknown_setting_of_a_family_is_refused_on_reading() -> None:
    with pytest.raises(ValueError, match="Extra inputs"):
        SAEConfig.model_validate({"d": 2, "s": 4, "sparsity": {"kind": "topk", "k": 1, "kk": 2}})


def test_a_setting_says_what_differs_from_the_usual() -> None:
    described = SAEConfig.of(8, 16, "jumprelu", mode="tanh").sparsity.describe()
    assert described == "jumprelu, mode tanh"


@pytest.mark.parametrize(
    ("family", "message"),
    [("relu", "the relu family has no k to choose"), ("gated", "the gated family has no k")],
)
def test_a_family_without_k_refuses_one(family: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SAE(SAEConfig.of(6, 12, family)).encode(torch.zeros(1, 6), k=3)


@pytest.mark.parametrize("family", ["topk", "batchtopk", "abstopk", "groupmax", "mp"])
def test_another_k_may_be_asked_for(family: str) -> None:
    sae = SAE(SAEConfig.of(6, 12, family, 2)).eval()
    codes = sae.encode(torch.randn(5, 6), k=4)
    assert 2 * 5 < int(codes.l0.sum()) <= 4 * 5


@pytest.mark.parametrize("shape", [(3, 5), (6,), (2, 3, 7)])
def test_another_width_is_refused(shape: tuple[int, ...]) -> None:
    sae = SAE(SAEConfig.of(8, 12, k=2))
    with pytest.raises(DataError, match=r"reads vectors of width 8; got shape \("):
        sae(torch.randn(shape))


# ---- how it starts


def test_equal_seeds_give_equal_saes_with_unit_atoms() -> None:
    one, two, three = (SAE(SAEConfig.of(6, 12, k=2), seed=s) for s in (4, 4, 5))
    assert torch.equal(one.W_dec, two.W_dec)
    assert not torch.equal(one.W_dec, three.W_dec)
    torch.testing.assert_close(one.W_dec.norm(dim=1), torch.ones(12))
    assert torch.equal(one.W_dec, one.W_enc) and one.W_dec is not one.W_enc


def test_a_transcoder_starts_at_zero_and_does_not_centre() -> None:
    """As in sparsify: W_dec and W_skip are 0, so that it starts as the mean of its targets."""
    sae = SAE(SAEConfig.of(6, 12, k=2, d_out=3, skip=True))
    x = torch.randn(5, 6)
    assert torch.equal(sae(x).x_hat, torch.zeros(5, 3))
    with torch.no_grad():
        sae.b_dec.fill_(2.0)
    assert torch.equal(sae.read(x), x) and torch.equal(sae(x).x_hat, torch.full((5, 3), 2.0))


@pytest.mark.parametrize(
    ("options", "atoms"),
    [
        ({}, "free"),
        ({"nest": {"kind": "prefix"}}, "free"),
        ({"atoms": "unit"}, "unit"),
        ({"tied": True}, "unit"),
        ({"rescale": True}, "unit"),
        ({"rescale": True, "atoms": "free"}, "free"),
        ({"d_out": 3}, "free"),
    ],
)
def test_atoms_of_a_batchtopk_are_free_unless_their_norm_is_spoken_for(
    options: dict[str, Any], atoms: str
) -> None:
    config = SAEConfig.of(6, 12, "batchtopk", 2, **options)
    assert config.atoms == atoms and config.tied == options.get("tied", False)
    assert config.rescale == options.get("rescale", False)
    assert SAEConfig.of(6, 12, "topk", 2).atoms == "unit"


@pytest.mark.parametrize("options", [{"atoms": "unit"}, {"rescale": True}])
def test_a_transcoder_whose_atoms_have_a_norm_to_keep_starts_with_it(
    options: dict[str, Any],
) -> None:
    """Where latents compete by their atoms' norms, none could win with all at 0."""
    sae = SAE(SAEConfig.of(6, 12, k=2, d_out=3, **options))
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(12))


def test_latents_compete_by_norm_only_if_asked() -> None:
    for rescale, winner in ((False, 0), (True, 1)):
        sae = SAE(SAEConfig.of(2, 2, k=1, atoms="free", rescale=rescale))
        with torch.no_grad():
            sae.W_enc.copy_(torch.tensor([[1.0, 0], [0.9, 0]]))
            sae.W_dec.copy_(torch.tensor([[1.0, 0], [2.0, 0]]))
        codes = sae.encode(torch.tensor([[1.0, 0]]))
        assert codes.indices.tolist() == [winner]
        assert codes.values.tolist() == pytest.approx([[1.0], [0.9]][winner])  # z, not z times n


def test_an_archetypal_atom_lies_near_the_points() -> None:
    """Within delta of the convex hull, times one common scale."""
    sae: Any = SAE(SAEConfig.of(6, 9, k=2, dictionary={"kind": "archetypal", "points": 4}))
    shape = sae.parametrizations.W_dec
    with torch.no_grad():
        shape[0].C.copy_(torch.randn(4, 6))
        shape.original.copy_(torch.rand(9, 4) - 0.2)
        shape.original[:, 0] = 0.5
        shape[0].relaxation.copy_(torch.randn(9, 6) * 10)
    weights = shape.original.relu() / shape.original.relu().sum(1, keepdim=True)
    away = (sae.W_dec - weights @ shape[0].C).norm(dim=1)
    torch.testing.assert_close(away, torch.ones(9))  # delta
    with torch.no_grad():
        shape[0].log_scale.fill_(0.7)
        shape[0].relaxation.zero_()
    torch.testing.assert_close(sae.W_dec, weights @ shape[0].C * torch.tensor(0.7).exp())


# ---- nests


def test_prefix_bounds_ascend_and_end_with_all_latents() -> None:
    assert nest.Prefixes(shares=(0.5, 0.01, 0.5)).bounds(10) == [1, 5, 10]
    assert nest.Prefixes().bounds(64) == [4, 8, 16, 32, 64]


def test_random_prefixes_are_distinct_favour_short_ones_and_have_the_whole() -> None:
    n, codes = nest.RandomPrefixes(count=5), Codes.of_dense(torch.ones(1, 1000))
    drawn = [n.groups(codes, seed, 1000) for seed in range(200)]
    assert all(g == sorted(set(g)) and len(g) == 5 and g[-1] == 1000 for g in drawn)
    assert drawn[0] != drawn[1] and drawn[0] == n.groups(codes, 0, 1000)
    lengths = torch.tensor([m for g in drawn for m in g[:-1]]).double()
    # P(length <= m) is about sqrt(m / s): half of them lie below a quarter
    assert float((lengths <= 250).double().mean()) == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize("s", [1, 2, 3])
def test_small_dictionaries_have_fewer_prefixes(s: int) -> None:
    groups = nest.RandomPrefixes(count=5).groups(Codes.of_dense(torch.ones(1, s)), 0, s)
    assert groups == list(range(1, s + 1))


@pytest.mark.parametrize(
    ("options", "want"),
    [
        ({}, [1 / 3] * 3),
        ({"reduction": "sum"}, [1.0] * 3),
        ({"weighting": "reversed"}, [3 / 6, 2 / 6, 1 / 6]),
        ({"weighting": "reversed", "reduction": "sum"}, [3.0, 2.0, 1.0]),
        ({"weighting": (3, 1, 4)}, [3 / 8, 1 / 8, 4 / 8]),
        ({"ks": (1, 2), "weighting": (3, 1)}, [3 / 5, 1 / 5, 1 / 5]),
    ],
)
def test_what_the_nested_losses_count(options: dict[str, Any], want: list[float]) -> None:
    torch.testing.assert_close(
        nest.Ks(**{"ks": (1, 2, 4)} | options).weights(3), torch.tensor(want)
    )


BOTH = {"kind": "both", "ks": (2, 4), "shares": (0.25, 0.5)}


def test_a_nested_topk_serves_any_k_of_any_prefix_as_an_sae_of_that_size() -> None:
    """Weights cut to the prefix, in an SAE of that k, give the same codes."""
    sae = SAE(SAEConfig.of(6, 16, k=4, nest=BOTH)).eval()
    x = torch.randn(5, 6)
    for k in (2, 3, 4):
        for m in (4, 10, 16):
            small = SAE(SAEConfig.of(6, m, k=k)).eval()
            with torch.no_grad():
                small.W_enc.copy_(sae.W_enc[:m])
            want = torch.nn.functional.pad(small.encode(x).to_dense(), (0, 16 - m))
            torch.testing.assert_close(sae.encode(x, k=k, prefix=m).to_dense(), want)


def test_each_k_reads_the_latents_of_the_largest_in_its_own_way() -> None:
    sae = SAE(SAEConfig.of(6, 16, k=4, nest={"kind": "k", "ks": (2, 4), "own": True})).eval()
    x = torch.randn(5, 6)
    torch.testing.assert_close(sae.encode(x, k=4).to_dense(), sae.encode(x).to_dense())
    with torch.no_grad():
        sae.levels.gain.copy_(torch.rand(16, 1) + 0.5)  # type: ignore[union-attr]
        sae.levels.shift.copy_(torch.randn(16, 1))  # type: ignore[union-attr]
    whole = sae.encode(x).to_dense()
    read = whole * sae.levels.gain[:, 0] + sae.levels.shift[:, 0]  # type: ignore[union-attr]
    read = read.masked_fill(whole == 0, 0).relu()
    want = read * torch.zeros_like(read).scatter(1, read.topk(2).indices, 1.0)
    torch.testing.assert_close(sae.encode(x, k=2).to_dense(), want)
    three = sae.encode(x, k=3).to_dense()  # read as of the largest, and cut
    want = whole * torch.zeros_like(whole).scatter(1, whole.topk(3).indices, 1.0)
    torch.testing.assert_close(three, want)


@pytest.mark.parametrize("family", ["topk", "batchtopk", "relu", "jumprelu"])
@pytest.mark.parametrize("nested", [{"kind": "prefix"}, {"kind": "random"}])
def test_a_prefix_of_an_sae_nested_over_prefixes_is_what_training_saw(
    family: str, nested: dict[str, Any]
) -> None:
    """The codes of all, cut: later latents still compete."""
    sae = SAE(SAEConfig.of(6, 16, family, nest=nested)).eval()
    if family == "batchtopk":
        sae.threshold.fill_(0.3)
    x = torch.randn(5, 6)
    want = sae.encode(x).to_dense()
    want[:, 4:] = 0
    torch.testing.assert_close(sae.encode(x, prefix=4).to_dense(), want)


@pytest.mark.parametrize("family", ["relu", "jumprelu", "batchtopk"])
def test_k_of_an_sae_nested_over_k_keeps_the_strongest(family: str) -> None:
    sae = SAE(SAEConfig.of(6, 16, family, nest={"kind": "k", "ks": (2, 4)})).eval()
    if family == "batchtopk":
        sae.threshold.fill_(0.1)
    x = torch.randn(5, 6)
    whole = sae.encode(x).to_dense()
    want = whole * torch.zeros_like(whole).scatter(1, whole.topk(3).indices, 1.0)
    torch.testing.assert_close(sae.encode(x, k=3).to_dense(), want)


@pytest.mark.parametrize(
    ("nested", "asked", "message"),
    [
        (None, {"prefix": 4}, r"prefix=4: this SAE was not trained over prefixes \(nest=prefix"),
        ({"kind": "k", "ks": (2, 4)}, {"prefix": 4}, "not trained over prefixes"),
        ({"kind": "prefix"}, {"prefix": 17}, "trained for prefixes of 1 to 16 latents"),
        (BOTH, {"prefix": 3}, "prefix=3: this SAE was trained for prefixes of 4 to 16 latents"),
        (BOTH, {"k": 1}, "k=1: this SAE was trained for k of 2 to 4"),
        (BOTH, {"k": 5}, "k=5: this SAE was trained for k of 2 to 4"),
    ],
)
def test_what_an_sae_was_not_trained_for_is_refused(
    nested: dict[str, Any] | None, asked: dict[str, int], message: str
) -> None:
    sae = SAE(SAEConfig.of(6, 16, k=4, nest=nested))
    with pytest.raises(ConfigError, match=message):
        sae.encode(torch.randn(3, 6), **asked)


def test_families_that_cannot_choose_in_a_prefix_are_not_nested_over_both() -> None:
    with pytest.raises(ConfigError, match="nest='both' is not for groupmax"):
        SAEConfig.of(6, 16, "groupmax", nest=BOTH)


# ---- thresholds


def test_batchtopk_without_a_threshold_refuses_inference() -> None:
    sae = SAE(SAEConfig.of(6, 12, "batchtopk", 2)).eval()
    with pytest.raises(ConfigError, match="no inference threshold yet: train it"):
        sae(torch.randn(3, 6))


@pytest.mark.parametrize("options", [{}, {"rescale": True, "atoms": "free"}])
def test_batchtopk_is_calibrated_to_a_mean_l0_of_k(options: dict[str, Any]) -> None:
    sae = SAE(SAEConfig.of(6, 24, "batchtopk", 3, **options)).eval()
    with torch.no_grad():
        sae.W_dec.mul_(torch.rand(24, 1) + 0.5)
    x = torch.randn(500, 6)
    sae.threshold_ema.fill_(9.0)
    assert float(sae.inference_threshold()) == 9.0
    sae.config.sparsity.calibrate(sae, x)
    assert float(sae.inference_threshold()) == float(sae.threshold)
    assert float(sae.encode(x).l0.float().mean()) == pytest.approx(3, abs=0.01)
    sae.threshold_choice = "running"
    assert float(sae.inference_threshold()) == 9.0


def test_the_running_threshold_follows_the_smallest_kept_value() -> None:
    sae: Any = SAE(SAEConfig.of(6, 24, "batchtopk", 3))
    family = sae.config.sparsity
    for value, want in ((2.0, 2.0), (1.0, 1.99), (0.0, 1.99)):
        values = torch.tensor([[value, 5.0 * value]])
        family.follow(sae, Codes.even(values, torch.tensor([[0, 1]]), 24))
        assert float(sae.threshold_ema) == pytest.approx(want)


def test_other_families_have_no_single_threshold() -> None:
    sae = SAE(SAEConfig.of(6, 12, k=2))
    with pytest.raises(ConfigError, match="the topk family has no single threshold"):
        sae.inference_threshold()


def test_rows_on_which_nothing_fires_cannot_calibrate() -> None:
    sae = SAE(SAEConfig.of(6, 12, "batchtopk", 2)).eval()
    with torch.no_grad():
        sae.b_enc.fill_(-100.0)
    with pytest.raises(DataError, match="no latent is active on any of 5 rows"):
        sae.config.sparsity.calibrate(sae, torch.randn(5, 6))


# ---- statistics of rows


def test_the_geometric_median_resists_an_outlier_and_the_mean_does_not() -> None:
    x = torch.randn(201, 3, generator=torch.Generator().manual_seed(0))
    x[0] = 1e5
    assert geometric_median(x).norm() < 1 < x.mean(0).norm()
    assert torch.equal(centre(x, "median"), geometric_median(x))
    assert torch.equal(centre(x, "mean"), x.mean(0))
    assert torch.equal(centre(x, "zero"), torch.zeros(3))


def test_the_geometric_median_is_where_unit_vectors_cancel() -> None:
    x = torch.randn(101, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    away = x - geometric_median(x, steps=2000)
    assert (away / away.norm(dim=1, keepdim=True)).sum(0).norm() < 0.05


def test_kmeans_finds_clusters_and_repeats_rows_when_they_are_few() -> None:
    centres = 10 * torch.eye(3)
    x = centres.repeat(20, 1) + 0.1 * torch.randn(60, 3)
    found = kmeans(x, 20)
    assert float(torch.cdist(centres, found).min(1).values.max()) < 0.2
    assert kmeans(x[:2], 5).shape == (5, 3)


def test_every_family_has_a_name_of_its_own() -> None:
    assert families.names()[: len(families.OURS)] == list(families.OURS)
    assert len(set(families.names())) == len(families.names())
