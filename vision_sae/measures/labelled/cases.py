"""The measures with labels, of a Case: rows of the suite. What they share is computed once.

Factors are those of `task.properties`: single values, of 20 images or more.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from vision_sae.errors import DataError
from vision_sae.measures.case import Case, Sample
from vision_sae.measures.labelled import infomec as info
from vision_sae.measures.labelled import probing, readout
from vision_sae.measures.labelled.absorption import absorption
from vision_sae.measures.labelled.circular import circularity
from vision_sae.measures.labelled.control import control
from vision_sae.measures.labelled.coverage import board, coverage
from vision_sae.measures.labelled.rows import ImageRows, of_case
from vision_sae.measures.labelled.targeted import pairs, scr, tpp
from vision_sae.measures.labelled.task import Task, mean_of, properties, task
from vision_sae.measures.mdl import mdl
from vision_sae.measures.score import Score, Scores, scored, undefined

EDITS = (1, 4)  # latents out and in
ABLATED = (2, 10, 50)
HOUR = "hour"
ONE = "there is no other factor that an edit could leave as it is"


@dataclass(frozen=True, eq=False)
class Known:
    """What is known of the images of a case (those to fit on, then those to test on)."""

    about: Sequence[dict[str, Any]]
    task: Task
    reader: readout.Readout


@lru_cache(maxsize=4)
def known(
    fit: Sample,
    test: Sample,
    factors: tuple[str, ...] | None = None,
    cross: tuple[tuple[str, str], ...] = (),
) -> Known:
    """The same for every SAE that is measured there. Raises DataError without usable factors."""
    about = [*fit.about, *test.about]
    if not about:
        raise DataError("nothing is known of the images, so no factor can be looked for")
    held_out = torch.arange(len(about)) >= fit.images
    found = task(properties(about, factors=factors, cross=cross), held_out)
    return Known(about, found, readout.readout(torch.cat([fit.pooled, test.pooled]), found))


@lru_cache(maxsize=1)
def rows_of(case: Case) -> ImageRows:
    return of_case(case)


def factor_coverage(case: Case) -> Scores:
    """coverage, coverage_random, board: see coverage.py. n: factor values."""
    return coverage_scores(rows_of(case), known(case.fit, case.test).task)


def coverage_scores(rows: ImageRows, values: Task) -> Scores:
    found, whole = coverage(rows.codes, values), board(rows.codes, values)
    n = len(values.names)
    return {
        "coverage": scored(found.coverage, found.reason, n=n),
        "coverage_random": scored(found.control, found.reason, n=n),
        "board": scored(whole.f1, whole.reason, n=n),
    }


def sparse_probes(case: Case) -> Scores:
    """probe_1, probe_2, probe_5: F1 of a probe on so many latents; see probing.py.

    probe_1_random: on a latent at random. n: factor values.
    """
    return sparse_scores(rows_of(case), known(case.fit, case.test).task)


def sparse_scores(rows: ImageRows, values: Task) -> Scores:
    out: Scores = {}
    for k in probing.KS:
        found = probing.sparse_probe(rows.codes, values, k, control=k == 1)
        means, n = found.means(), len(values.names)
        out[f"probe_{k}"] = scored(means["f1"], found.reason, n=n)
        if k == 1:
            out["probe_1_random"] = scored(means["random f1"], found.reason, n=n)
    return out


def dense_probes(case: Case) -> Scores:
    """probe_codes, probe_x_hat, probe_x: F1 of a probe on all latents, on the reconstruction, on x.

    probe_x is the ceiling, the same for every SAE of a site. n: factor values.
    """
    given = known(case.fit, case.test)
    return dense_scores(rows_of(case), given.task) | {
        "probe_x": ceiling_score(given, torch.cat([case.fit.pooled, case.test.pooled]))
    }


def dense_scores(rows: ImageRows, values: Task) -> Scores:
    n = len(values.names)
    none = "" if bool(rows.codes.active.any()) else "no latent fires"
    codes = math.nan if none else probing.probe(rows.codes, values).means()["f1"]
    return {
        "probe_codes": scored(codes, none, n=n),
        "probe_x_hat": Score(probing.probe(rows.x_hat, values).means()["f1"], n=n),
    }


def targeted(case: Case) -> Scores:
    """tpp_N, scr_N with N latents ablated, and tpp_random of 10; see targeted.py.

    TPP is of the case's label. SCR is of the label and the factor with which it has most pairs of
    values that share images. n: classes, pairs.
    """
    assert case.label is not None
    rows, given = rows_of(case), known(case.fit, case.test)
    drops = tpp(rows, given.task, case.label)
    out = {f"tpp_{n}": scored(drops.score[n], drops.reason, n=drops.n) for n in ABLATED}
    out["tpp_random"] = scored(drops.random[10], drops.reason, n=drops.n)
    others = [f for f in given.reader.factors if f != case.label]
    counts = {f: len(pairs(given.task, case.label, f)) for f in others}
    if not counts:
        none = undefined(f"{case.label} is the only factor, so nothing is spurious")
        return out | dict.fromkeys([f"scr_{n}" for n in ABLATED] + ["scr_random"], none)
    freed = scr(rows, given.task, case.label, max(counts, key=lambda f: counts[f]))
    out |= {f"scr_{n}": scored(freed.score[n], freed.reason, n=freed.n) for n in ABLATED}
    return out | {"scr_random": scored(freed.random[10], freed.reason, n=freed.n)}


def absorbed(case: Case) -> Scores:
    """absorption, absorption_full: of the case's label, as super-classes; see absorption.py.

    n: super-classes with a usable probe.
    """
    assert case.label is not None
    b_dec = getattr(case.dictionary, "b_dec", None)
    rows = rows_of(case)
    centre = rows.x.mean(0) if b_dec is None else b_dec.detach()
    found = absorption(rows, known(case.fit, case.test).task, case.label, centre)
    n = len(found.by_class)
    return {
        "absorption": scored(found.fraction, found.reason, n=n),
        "absorption_full": scored(found.full, found.reason, n=n),
    }


def description(case: Case) -> Scores:
    """mdl_bits: bits per row of codes that decode to sqrt(MSE)/d < .01; see mdl.py. n: rows."""
    with torch.no_grad():
        found = mdl(case.on_test.codes, case.test.rows, case.dictionary.decode)
    return {"mdl_bits": scored(found.bits, found.reason, n=len(case.test.rows))}


def clock(case: Case) -> Scores:
    """ring_x, ring_x_hat, ring_latents: mean cosine of the error of the hour as it is read off x,
    the reconstruction and the cluster of latents for clock faces (0 is chance).

    ring_rank: the share of random clusters that are less of a ring (above .95 is remarkable). See
    circular.py. n: images, clusters.

    The hour is the label `hour`, 12 to a turn. Raises DataError without it.
    """
    about = [*case.fit.about, *case.test.about]
    hours = torch.tensor([float(row.get(HOUR, math.nan)) for row in about])
    if not bool(hours.isfinite().any()):
        raise DataError(f"no image has the label {HOUR!r}, whose values are a circle")
    held_out = torch.arange(len(about)) >= case.fit.images
    found = circularity(rows_of(case), 2 * math.pi * hours / 12, held_out)
    why = found.reason or "no random cluster fires on enough images"
    rings = {"ring_x": found.x, "ring_x_hat": found.x_hat, "ring_latents": found.own}
    scores = {name: scored(one.cosine, one.reason, n=one.n) for name, one in rings.items()}
    return scores | {"ring_rank": scored(found.share_below, why, n=found.controls)}


def ceiling_score(given: Known, x: torch.Tensor) -> Score:
    found = probing.probed(given.reader.probe(x), given.task)
    return Score(found.means()["f1"], n=len(given.task.names))


def supervised_axes(case: Case) -> Scores:
    """sufficiency, necessity (readout.py); control_1, control_4, control_random, control_kept.

    Control is the mean over factors of which pairs differ in that factor alone (control.py). n:
    factors, of control the pairs.
    """
    return axes_scores(rows_of(case), known(case.fit, case.test))


def axes_scores(rows: ImageRows, given: Known) -> Scores:
    found = readout.approximation(rows.x, rows.x_hat, given.reader)
    n = len(given.reader.factors)
    return {
        "sufficiency": scored(found.sufficiency, found.reason, n=n),
        "necessity": scored(found.necessity, found.reason, n=n),
    } | control_scores(rows, given)


def control_scores(rows: ImageRows, given: Known) -> Scores:
    out: Scores = {}
    for edits in EDITS:
        all_ = [control(rows, given.reader, given.about, f, edits) for f in given.reader.factors]
        found = [one for one in all_ if not one.reason]
        pairs = sum(one.pairs for one in found)
        names = {f"control_{edits}": "aware"}
        if edits == 1:
            names |= {
                "control_random": "random", "control_kept": "kept", "control_ceiling": "ceiling"
            }  # fmt: skip
        for name, field in names.items():
            values = torch.tensor([getattr(one, field) for one in found])
            why = "no factor has 10 pairs of test images that differ in it alone"
            out[name] = scored(mean_of(values), ONE if found else why, n=pairs)
    return out


def infomec(case: Case) -> Scores:
    """modularity, explicitness, compactness of the 50 latents that know most, modularity_all.

    See infomec.py. n: images; of modularity_all: latents.
    """
    return infomec_scores(rows_of(case), known(case.fit, case.test).task)


def infomec_scores(rows: ImageRows, values: Task) -> Scores:
    found = info.infomec(rows.codes, values)
    every = info.modularity(rows.codes, values)
    why = found.reason or "not defined"
    scores = {
        name: scored(getattr(found, name), why, n=found.n)
        for name in ("modularity", "explicitness", "compactness")
    }
    return scores | {"modularity_all": scored(every.value, every.reason, n=every.latents)}
