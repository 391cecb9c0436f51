"""ViSAEBench's numbers that need labels, under its names, with its settings.

visaebench 0.1.0 on PyPI (ICML 2026 workshop), read from its code. They are there to be set beside
published ones, and are not the better definitions: docstrings say where ours differ. Codes are
max-pooled over an image's tokens, classes are those of a case's label.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vision_sae.errors import DataError, require
from vision_sae.measures.case import Case, Encoding, Sample
from vision_sae.measures.labelled.ranking import best, f_of_classes, f_statistic, moments
from vision_sae.measures.labelled.rows import columns, image_rows, live
from vision_sae.measures.score import Score, Scores, scored, undefined
from vision_sae.sparse.codes import Codes

KS = (1, 5, 10, 20, 50, 100)
SEED = 42  # of its train and test halves
GROUP, OVERLAP, GAP = 3, 0.5, 0.1  # siblings of a group; what counts as absorbed


@dataclass(frozen=True)
class _Halves:
    """A stratified split, as scikit-learn makes it; images without a class are left out."""

    train: Int[Tensor, " m"]
    test: Int[Tensor, " o"]
    classes: Int[Tensor, " n"]


@lru_cache(maxsize=8)
def _halves(sample: Sample, label: str) -> _Halves:
    classes = sample.classes(label)
    images = (classes >= 0).nonzero()[:, 0]
    counts = torch.bincount(classes[images])
    if int((counts > 0).sum()) < 2:
        raise DataError(f"a probe needs two values of {label!r}")
    if len(images) < 10:
        raise DataError(f"a probe needs 10 images with a {label!r}; got {len(images)}")
    split = require("sklearn.model_selection", "report").train_test_split
    stratify = classes[images].numpy() if int(counts[counts > 0].min()) > 1 else None
    train, test = split(images.numpy(), test_size=0.2, stratify=stratify, random_state=SEED)
    return _Halves(torch.from_numpy(train), torch.from_numpy(test), classes)


def _fitted(x: Tensor, y: Tensor, max_iter: int) -> Any:
    """Its LogisticRegression: C = 1, features as they are, stopped where it stops."""
    model = require("sklearn.linear_model", "report").LogisticRegression(max_iter=max_iter)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of convergence, which it ignores as well
        return model.fit(x.double().numpy(), y.numpy())


def _accuracy(model: Any, x: Tensor, y: Tensor) -> float:
    return float((torch.from_numpy(model.predict(x.double().numpy())) == y).double().mean())


def probe_ratio(case: Case) -> Scores:
    """M3, downstream_preservation: accuracy of a probe on x_hat / on x, at most 2.

    The probe (C = 1, 1,000 iterations) is fitted on mean-pooled x of four fifths of the test images
    and asked on the other fifth. Ours: sufficiency, which takes off what the mean gives. n: images.
    """
    assert case.label is not None
    halves = _halves(case.test, case.label)
    y = halves.classes
    x, x_hat = case.test.pooled, case.on_test.pooled_hat
    model = _fitted(x[halves.train], y[halves.train], 1000)
    before, after = (_accuracy(model, r[halves.test], y[halves.test]) for r in (x, x_hat))
    if not before:
        return {"visaebench.probe_ratio": undefined("the probe is never right on x")}
    return {"visaebench.probe_ratio": Score(min(2.0, after / before), n=len(halves.test))}


def sparse_probe(case: Case) -> Scores:
    """M4, sparse_probing_auc: area under accuracy against k in {1, 5, 10, 20, 50, 100}, / range.

    By trapezoids on a linear axis of k, so that k of 50 and more are most of it. Latents are ranked
    by the F statistic over all images, also those that are tested on; probes have C = 1, 500
    iterations. Ours: probe_1, probe_2, probe_5, chosen on train alone. n: images.
    """
    assert case.label is not None
    halves = _halves(case.test, case.label)
    codes = _codes(case.on_test)
    if not len(live(codes)):
        return {"visaebench.sparse_probe": undefined("no latent fires")}
    ks = [k for k in KS if k <= codes.width]
    every = torch.cat([halves.train, halves.test])
    found = torch.tensor([_k_sparse(codes, halves, every, k) for k in ks], dtype=torch.float64)
    area = torch.trapezoid(found, torch.tensor(ks)) / (ks[-1] - ks[0]) if len(ks) > 1 else found[0]
    return {"visaebench.sparse_probe": Score(float(area), n=len(halves.test))}


def _codes(encoding: Encoding) -> Codes:
    return image_rows(encoding).codes


def _k_sparse(codes: Codes, halves: _Halves, rank_on: Tensor, k: int) -> float:
    y = halves.classes
    members = torch.nn.functional.one_hot(y.clamp(min=0)).bool()
    of = torch.zeros(len(codes), dtype=torch.bool)
    of[rank_on] = True
    f = f_of_classes(moments(codes, members, of))
    x = columns(codes, best(f[:, None], k)[0])
    model = _fitted(x[halves.train], y[halves.train], 500)
    return _accuracy(model, x[halves.test], y[halves.test])


def transfer(case: Case) -> Scores:
    """M6, cross_domain: mean of (1 - FVU), (1 - dead share), Jaccard and 10-sparse accuracy.

    Home is `fit`, the other domain `test`: give a store of other images to test on, or it says
    nothing of transfer. FVU as M2, within 0 and 1; dead: latents that fire at home and not there;
    Jaccard of the two sets that fire; the probe's latents are ranked on its train half. n: images.
    """
    assert case.label is not None
    halves = _halves(case.test, case.label)
    home, there = (_codes(e).fired() for e in (case.on_fit, case.on_test))
    if not bool(home.any()):
        return {"visaebench.transfer": undefined("no latent fires at home")}
    x = case.test.rows.double()
    error, spread = x - case.on_test.x_hat.double(), x.var(correction=0)
    fvu = float(error.var(correction=0) / spread) if spread > 0 else 1.0
    dead = float((home & ~there).sum() / home.sum())
    jaccard = float((home & there).sum() / (home | there).sum())
    accuracy = _k_sparse(_codes(case.on_test), halves, halves.train, 10)
    parts = [min(1.0, max(0.0, 1 - fvu)), 1 - dead, jaccard, accuracy]
    return {"visaebench.transfer": Score(sum(parts) / 4, n=case.test.images)}


def absorption(case: Case) -> Scores:
    """M7, absorption_rate: the share of (class, its siblings) in which the class is absorbed.

    Groups are the classes, three or more, with one parent (see `sibling_groups`). Absorbed: the 10
    latents of largest mean on the class and those on its group overlap by a Jaccard of more than
    .5, or F1 of class against siblings rises by more than .1 from the latent of largest F statistic
    to the four largest, on the images that the probes were fitted on. Ours: absorption.py.
    n: pairs of class and group.
    """
    groups = sibling_groups(case.test.about)
    codes = _codes(case.on_test)
    found = [absorbed for group in groups.values() for absorbed in _absorbed(codes, group)]
    why = f"no group of {GROUP} siblings has 10 images and 3 of a class"
    value = sum(found) / len(found) if found else float("nan")
    return {"visaebench.absorption": scored(value, why, n=len(found))}


def sibling_groups(
    about: Sequence[dict[str, Any]],
    levels: Sequence[tuple[str, str]] = (("concept", "subcategory"), ("subcategory", "category")),
) -> dict[str, dict[str, list[int]]]:
    """parent value -> class -> its images, for the first (class, parent) that the images carry.

    Of EmojiCanvas: concepts of one subcategory. Raises DataError when no image carries both.
    """
    for child, parent in levels:
        groups: dict[str, dict[str, list[int]]] = {}
        for i, row in enumerate(about):
            if child in row and parent in row:
                groups.setdefault(str(row[parent]), {}).setdefault(str(row[child]), []).append(i)
        if groups:
            return {name: group for name, group in groups.items() if len(group) >= GROUP}
    raise DataError(
        "absorption needs a hierarchy: images with "
        + " or ".join(f"a {child} and a {parent}" for child, parent in levels)
    )


def _absorbed(codes: Codes, group: dict[str, list[int]]) -> list[bool]:
    """Of each class of a group with 3 images and 3 of its siblings."""
    images = torch.tensor([i for some in group.values() for i in some])
    if len(images) < 10:
        return []
    inside = torch.zeros(len(codes), dtype=torch.bool)
    inside[images] = True
    names = [name for name, some in group.items() if 3 <= len(some) <= len(images) - 3]
    members = torch.zeros(len(codes), len(names), dtype=torch.bool)
    for column, name in enumerate(names):
        members[group[name], column] = True
    m = moments(codes, members, inside)
    whole = set(best((m.total / m.rows)[:, None], 10)[0].tolist())
    tops = best(m.inside / m.counts, 10).tolist()
    ranked = best(f_statistic(m), 4)
    return [
        _overlap(set(top), whole) > OVERLAP or _gap(codes, images, members[:, i], ranked[i]) > GAP
        for i, top in enumerate(tops)
    ]


def _overlap(a: set[int], b: set[int]) -> float:
    return len(a & b) / len(a | b)


def _gap(codes: Codes, images: Tensor, member: Tensor, ranked: Int[Tensor, " k"]) -> float:
    x, y = columns(codes, ranked)[images], member[images].long()
    one, four = (_f1(x[:, :k], y) for k in (1, 4))
    return four - one


def _f1(x: Float[Tensor, "m k"], y: Int[Tensor, " m"]) -> float:
    said = torch.from_numpy(_fitted(x, y, 500).predict(x.double().numpy()))
    hits = int((said & y).sum())
    return 2 * hits / max(1, int(said.sum() + y.sum()))
