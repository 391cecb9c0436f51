"""The estimator on planted concepts: fitted, explained, corrected, saved; and what it refuses."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_array
from sklearn.base import clone

from vision_sae.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    MismatchError,
    OutputExists,
    UnknownName,
)
from vision_sae.recipes.bottleneck import (
    Bottleneck,
    Change,
    Concepts,
    Head,
    Part,
    load,
    reaching,
    save,
)
from vision_sae.recipes.bottleneck.choice import Point, choose
from vision_sae.recipes.bottleneck.measures import best_temperature, by_group, ece

CAT, DOG, COW, GRASS = 3, 5, 7, 11
NAMES = {CAT: "cat", DOG: "dog", COW: "cow", GRASS: "green grass", 12: "green leaf", 13: "cat ear"}
FAST = {"strengths": 10, "smallest": 0.03, "tolerance": 1e-3}


def planted(n: int = 300, seed: int = 0, s: int = 30) -> tuple[Any, list[str]]:
    """Codes in which one of three concepts says the class and the others fire at random."""
    rng = np.random.default_rng(seed)
    X = np.maximum(rng.standard_normal((n, s)) - 1.2, 0)
    y = rng.integers(0, 3, n)
    X[:, [CAT, DOG, COW]] = 0
    X[np.arange(n), np.array([CAT, DOG, COW])[y]] = 1 + rng.random(n)
    return csr_array(X), [("cat", "dog", "cow")[i] for i in y]


@pytest.fixture(scope="module")
def fitted() -> Bottleneck:
    return Bottleneck(**FAST).fit(*planted(), names=NAMES)  # type: ignore[arg-type]


def test_planted_concepts_are_found_and_nothing_else(fitted: Bottleneck) -> None:
    X, y = planted(seed=1)
    assert fitted.score(X, y) == 1.0
    assert {CAT, DOG, COW} <= set(fitted.head_.used) and len(fitted.head_.used) <= 6
    assert fitted.classes_ == ["cat", "cow", "dog"]
    assert fitted.predict(X) == y
    np.testing.assert_allclose(fitted.predict_proba(X).sum(1), 1)
    assert fitted.validation_["score"] == 1.0 and max(p.gap for p in fitted.path_) <= 1e-3


def test_it_is_an_estimator_of_scikit_learns(fitted: Bottleneck) -> None:
    other = clone(fitted)
    assert other.get_params() == fitted.get_params() and not hasattr(other, "head_")
    assert clone(fitted).set_params(choice="one-se").choice == "one-se"
    with pytest.raises(ConfigError, match="no setting 'depth'; there are: choice, budget"):
        other.set_params(depth=3)
    with pytest.raises(ConfigError, match="not fitted yet"):
        other.predict(planted()[0])


def test_centring_changes_the_terms_and_not_the_predictions(fitted: Bottleneck) -> None:
    X, y = planted()
    plain = Bottleneck(**FAST, centre=False).fit(X, y)  # type: ignore[arg-type]
    centred = fitted
    np.testing.assert_allclose(plain.decision_function(X), centred.decision_function(X), atol=1e-9)
    told = centred.explain(X[[0]])[0]
    assert told.centring != 0 and plain.explain(X[[0]])[0].centring == 0
    # without a concept: absent, or in a centred bottleneck at its mean
    gone = centred.without([CAT, DOG, COW]).decision_function(X[[0]])[0]
    mean = X.toarray()[0]
    kept = np.asarray(centred.head_.m)
    mean[[CAT, DOG, COW]] = kept[[CAT, DOG, COW]]
    np.testing.assert_allclose(gone, centred.decision_function(csr_array(mean[None]))[0])


@pytest.mark.parametrize("centre", [False, True])
def test_contributions_sum_to_the_logit(centre: bool) -> None:
    X, y = planted(150)
    cbm = Bottleneck(**FAST, centre=centre).fit(X, y, names=NAMES)  # type: ignore[arg-type]
    z = cbm.decision_function(X)
    for i, one in enumerate(cbm.explain(X)):
        total = one.intercept + one.centring + sum(c.value for c in one.contributions)
        assert one.logit == total == pytest.approx(z[i].max(), abs=1e-9)
        assert all(c.value == c.weight * c.code for c in one.contributions)
        assert one.predicted == one.explained == y[i]
        assert one.contributions[0].name == y[i]
    lead = cbm.explain(X[[0]], of="cat", against="dog")[0]
    cat, dog = (z[0, cbm.classes_.index(name)] for name in ("cat", "dog"))
    assert lead.logit == pytest.approx(cat - dog)
    with pytest.raises(UnknownName, match="no class 'horse'; there are: cat, cow, dog"):
        cbm.explain(X[[0]], of="horse")


@given(st.integers(0, 2**16), st.sampled_from([0.5, 0.9, 0.95, 0.99]), st.booleans())
def test_concepts_that_reach_a_share_are_counted_as_by_hand(
    seed: int, share: float, positive: bool
) -> None:
    rng = np.random.default_rng(seed)
    dense = rng.standard_normal((5, 9)) * (rng.random((5, 9)) < 0.6)
    slow = []
    for row in dense:
        sizes = sorted(np.maximum(row, 0) if positive else np.abs(row), reverse=True)
        needed = [m for m in range(10) if sum(sizes[:m]) >= share * sum(sizes) - 1e-9]
        slow.append(needed[0] if sum(sizes) else 0)
    of = "positive" if positive else "absolute"
    assert reaching(csr_array(dense), share, of).tolist() == slow


def test_class_concepts_are_the_planted_ones(fitted: Bottleneck) -> None:
    X, _ = planted(seed=1)
    for name, found in fitted.class_concepts(X).items():
        assert found[0].name == name and found[0].mean > 0
        assert found[0].images == sum(one == name for one in fitted.predict(X))
    assert 1 <= fitted.reach(X)["95%"] <= 3


def test_concepts_are_removed_by_number_and_name(fitted: Bottleneck) -> None:
    X, y = planted(seed=1)
    blind = fitted.without("dog")
    assert DOG not in blind.head_.used and blind.removed_ == [DOG]
    dogs = np.array(y) == "dog"
    assert blind.score(X[~dogs], np.array(y)[~dogs]) == 1.0
    only = fitted.only(["cat", DOG])
    assert set(only.head_.used) == {CAT, DOG}
    assert (fitted.without([DOG]).predict_proba(X) == blind.predict_proba(X)).all()
    assert DOG in fitted.head_.used  # a copy was changed


def test_names_that_match_none_or_many_are_told(fitted: Bottleneck) -> None:
    with pytest.raises(UnknownName, match="no concept 'dgo'; did you mean dog"):
        fitted.without("dgo")
    with pytest.raises(ConfigError, match=r"'green' matches 2 .*: 11 \(green grass\), 12 \(green"):
        fitted.without("green")
    with pytest.raises(UnknownName, match="no concept '99'; there are: 0 to 29"):
        fitted.without(99)
    assert fitted.find("green", many=True) == [GRASS, 12]
    assert fitted.find("cat") == [CAT]  # a whole name before a part of one


def test_an_edit_of_one_image_shows_the_changed_outcome(fitted: Bottleneck) -> None:
    X, y = planted(seed=1)
    i = y.index("cat")
    told = fitted.edit(X[[i]], {"cat": Change(to=0.0), "dog": Change(to=2.0)})
    assert told.flipped and (told.before.predicted, told.after.predicted) == ("cat", "dog")
    assert [c[0] for c in told.changed] == [CAT, DOG]
    halved = fitted.edit(X[[i]], {CAT: Change(times=0.5)})
    assert halved.changed[0][2] == halved.changed[0][1] / 2
    assert halved.after.probability < halved.before.probability
    with pytest.raises(DataError, match="an edit is of one image; got 2"):
        fitted.edit(X[[0, 1]], {CAT: Change(to=0.0)})
    with pytest.raises(ConfigError, match="one of the two"):
        Change()


def correlated(n: int, share: float, seed: int) -> tuple[Any, list[str], list[str]]:
    """Classes by faint concepts 0 and 1; a loud concept 4 for grass, with class a mostly."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, n)
    grass = np.where(rng.random(n) < share, y == 0, y == 1)
    X = np.maximum(rng.standard_normal((n, 20)) - 1.2, 0)
    X[:, 0] = np.where(y == 0, 0.6, 0) + np.maximum(0.3 * rng.standard_normal(n), 0)
    X[:, 1] = np.where(y == 1, 0.6, 0) + np.maximum(0.3 * rng.standard_normal(n), 0)
    X[:, 4] = grass * (2 + rng.random(n))
    return csr_array(X), ["ab"[i] for i in y], ["grass" if g else "water" for g in grass]


def test_removing_a_spurious_concept_repairs_the_worst_group() -> None:
    X, y, ground = correlated(600, 0.98, 0)
    test, truth, where = correlated(600, 0.5, 1)
    cbm = Bottleneck(**FAST).fit(X, y, names={0: "cat", 1: "dog", 4: "grass"})  # type: ignore[arg-type]
    groups = [f"{a}/{b}" for a, b in zip(truth, where, strict=True)]

    def worst(one: Bottleneck) -> float:
        right = np.array(one.predict(test)) == np.array(truth)
        return min(by_group(right.astype(float), groups).values())

    found = cbm.associations(X, y, ground)
    assert found[0].concept == 4 and found[0].irrelevant
    assert not any(a.irrelevant for a in found if a.concept in (0, 1))
    repaired = cbm.without("grass")
    again = repaired.refit(X, y)
    assert 4 not in again.head_.used and again.removed_ == [4] and again.names_ == cbm.names_
    assert worst(cbm) < 0.8 and worst(repaired) > worst(cbm) + 0.1 and worst(again) > 0.85
    with pytest.raises(DataError, match="every class has one value of the attribute"):
        cbm.associations(X, y, y)


def test_several_labels_are_predicted_each_by_itself(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    X = csr_array(np.maximum(rng.standard_normal((300, 12)) - 0.5, 0))
    y = [[n for i, n in enumerate("pq") if v[i] > 0.3] for v in X.toarray()]
    cbm = Bottleneck(**FAST).fit(X, y)  # type: ignore[arg-type]
    assert cbm.head_.several and set(cbm.head_.used) >= {0, 1}
    assert cbm.score(X, y) > 0.9 and cbm.predict(X[:2])[0] in ([], ["p"], ["q"], ["p", "q"])
    save(cbm, tmp_path / "cbm")
    assert load(tmp_path / "cbm").predict(X) == cbm.predict(X)


def test_a_saved_bottleneck_is_the_same_and_no_pickle(fitted: Bottleneck, tmp_path: Path) -> None:
    X, y = planted(seed=1)
    other = fitted.without("dog")
    save(other, tmp_path / "cbm")
    again = load(tmp_path / "cbm")
    assert (again.predict_proba(X) == other.predict_proba(X)).all()
    assert again.explain(X[:3]) == other.explain(X[:3])
    assert (again.names_, again.removed_, again.path_) == (NAMES, [DOG], fitted.path_)
    assert sorted(p.name for p in (tmp_path / "cbm").iterdir()) == [
        "bottleneck.json", "head.safetensors",
    ]  # fmt: skip
    with pytest.raises(OutputExists, match="holds a bottleneck"):
        save(other, tmp_path / "cbm")
    with pytest.raises(CheckpointError, match="holds no bottleneck: it has no bottleneck.json"):
        load(tmp_path)
    described = json.loads((tmp_path / "cbm" / "bottleneck.json").read_text())
    assert described["settings"] == fitted.get_params()
    (tmp_path / "cbm" / "head.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="head.safetensors cannot be read"):
        load(tmp_path / "cbm")


def concepts(X: Any, weights: str = "w", pool: Any = "max") -> Concepts:
    n, s = X.shape
    part = Part(sae="sae/", weights=weights, latents=s, pool=pool)
    return Concepts(X, [f"k{i}" for i in range(n)], [{}] * n, (part,))


def test_codes_of_another_sae_are_refused() -> None:
    X, y = planted(120)
    cbm = Bottleneck(**FAST).fit(concepts(X), y)  # type: ignore[arg-type]
    assert cbm.score(concepts(X), y) == 1.0
    with pytest.raises(MismatchError, match="not the codes that the bottleneck reads: the SAE sae"):
        cbm.predict(concepts(X, weights="other"))
    with pytest.raises(MismatchError, match="pooled by max against mean"):
        cbm.predict(concepts(X, pool="mean"))
    with pytest.raises(MismatchError, match="reads 30 concepts; got 7"):
        cbm.predict(X[:, :7])
    with pytest.raises(ConfigError, match="Concepts or a scipy sparse matrix; got ndarray"):
        cbm.predict(X.toarray())


def test_unseen_classes_and_rare_ones_are_refused(fitted: Bottleneck) -> None:
    X, y = planted(60)
    with pytest.raises(DataError, match=r"not seen in fitting: horse \(1 images\); it knows cat"):
        fitted.score(X, ["horse", *y[1:]])
    with pytest.raises(DataError, match="1 of 4 classes have one example"):
        Bottleneck().fit(X, ["horse", *y[1:]])
    with pytest.raises(DataError, match="59 labels for 60 images"):
        Bottleneck().fit(X, y[1:])
    with pytest.raises(ConfigError, match="validation must be a share between 0 and 1; got 1"):
        Bottleneck(validation=1.0).fit(X, y)


def test_a_blank_image_is_decided_by_the_intercept(fitted: Bottleneck) -> None:
    blank = csr_array((1, 30))
    told = fitted.explain(blank)[0]
    assert told.contributions == () and told.logit == told.intercept + told.centring
    assert told.reach == {"90%": 0, "95%": 0, "99%": 0}


def test_given_validation_images_choose(fitted: Bottleneck) -> None:
    X, y = planted()
    other = Bottleneck(**FAST).fit(X, y, validation=planted(80, seed=2))  # type: ignore[arg-type]
    assert other.validation_["images"] == 80 and other.score(X, y) == 1.0


def test_the_relaxed_path_and_the_reference_head_fit_too() -> None:
    X, y = planted(200)
    relaxed = Bottleneck(**FAST, relaxed=True).fit(X, y)  # type: ignore[arg-type]
    assert relaxed.score(X, y) == 1.0
    adam = Bottleneck(head="adam").fit(X, y)
    assert adam.score(X, y) == 1.0 and np.isnan(adam.path_[0].gap) and not adam.head_.b.any()
    with pytest.raises(ConfigError, match="head must be elastic-net or adam; got 'tree'"):
        Bottleneck(head="tree").fit(X, y)


def point(score: float, concepts: int, error: float = 0.02) -> Point:
    cost = float(concepts)
    return Point(1.0, score, error, 0.0, concepts, cost, cost, 0.0, 0.0, 1)


def test_choices_on_the_path() -> None:
    path = [point(0.3, 0), point(0.8, 4), point(0.89, 12), point(0.9, 30), point(0.9, 60)]
    assert choose(path) == 3  # of equals the sparser
    assert choose(path, "one-se") == 2
    assert choose(path, "per-class") == 1 and choose(path, "per-class", 12) == 2
    assert choose(path, "per-decision") == 2
    with pytest.raises(ConfigError, match="at most 2 concepts per decision; the sparsest needs 4"):
        choose(path, "per-decision", 2)
    with pytest.raises(ConfigError, match="a budget is for choosing by per-class or per-decision"):
        choose(path, "accuracy", 5)


def test_calibration_error_by_hand_and_temperature() -> None:
    p = np.array([[0.8, 0.2], [0.8, 0.2], [0.6, 0.4], [0.4, 0.6]])
    Y = np.eye(2)[[0, 1, 0, 1]]
    assert ece(p, Y, several=False) == pytest.approx((2 * abs(0.5 - 0.8) + 2 * 0.4) / 4)
    rng = np.random.default_rng(0)
    z = rng.standard_normal((4000, 3))
    q = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    Y = np.eye(3)[[rng.choice(3, p=row) for row in q]]
    assert best_temperature(3 * z, Y, several=False) == pytest.approx(3, rel=0.1)


def test_dropping_is_keeping_the_rest() -> None:
    W = csr_array(np.arange(1.0, 7).reshape(2, 3))
    head = Head(["a", "b"], W, np.zeros(2), np.zeros(3))
    assert (head.drop([1]).W != head.keep([0, 2]).W).nnz == 0
    assert head.drop([1]).used == [0, 2]


def test_of_several_penalties_the_one_of_best_validation_is_taken(tmp_path: Path) -> None:
    """A path for each scale and l1 share, each the same as alone."""
    X, y = planted()
    several = Bottleneck(**{**FAST, "scale": ("deviation", "none"), "l1_ratio": (0.95, 0.5)})
    several.fit(X, y)
    alone = [
        point
        for scale in ("deviation", "none")
        for share in (0.95, 0.5)
        for point in Bottleneck(**{**FAST, "scale": scale, "l1_ratio": share}).fit(X, y).path_
    ]
    assert several.path_ == alone
    chosen = several.path_[several.chosen_]
    best = max(p.score for p in alone)
    assert chosen.score == best
    assert chosen.per_decision == min(p.per_decision for p in alone if p.score == best)
    save(several, tmp_path / "cbm")
    assert load(tmp_path / "cbm").path_ == several.path_
