"""The evaluation suite: an ordered table of measures, each a function of a Case.

To add one, write `def mine(case: Case) -> Scores` with its formula and source in its docstring, and
give it a row here. A measure raises DataError for what makes all of its scores undefined (fewer
images than it needs, say); the message becomes their reason. What it `needs` is looked for first.
"""

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

from vision_sae.errors import DataError, UnknownName
from vision_sae.measures import (
    agreement,
    cknna,
    geometry,
    monosemanticity,
    reconstruction,
    seeds,
    spatial,
    splicing,
    visaebench,
)
from vision_sae.measures.case import Case
from vision_sae.measures.labelled import cases
from vision_sae.measures.labelled import visaebench as visaebench_labelled
from vision_sae.measures.score import Scores, undefined

Better = Literal["higher", "lower", "neither"]
Need = Literal["labels", "classes", "patches", "embeddings", "seeds", "model"]


class Measure(NamedTuple):
    """A row of the suite: its scores by name, and whether more of each is better."""

    name: str
    run: Callable[[Case], Scores]
    scores: Mapping[str, Better]
    needs: tuple[Need, ...] = ()


MEASURES: tuple[Measure, ...] = (
    Measure(
        "reconstruction",
        reconstruction.reconstruction,
        {
            "fvu": "lower",
            "cosine": "higher",
            "l0": "lower",
            "zeros": "higher",
            "dead": "lower",
            "dense": "lower",
        },
    ),
    Measure("cknna", cknna.cknna, {"cknna": "higher"}),
    Measure("geometry", geometry.geometry, {"nonorthogonality": "lower"}),
    Measure(
        "splicing",
        splicing.splicing,
        {"zero_shot": "higher", "zero_shot_kl": "lower", "zero_shot_recovered": "higher"},
        ("model",),
    ),
    Measure(
        "agreement",
        agreement.agreement,
        {"probe_agreement": "higher", "probe_kl": "lower"},
        ("classes",),
    ),
    Measure(
        "monosemanticity",
        monosemanticity.monosemanticity,
        {
            "monosemanticity": "higher",
            "monosemanticity_best": "higher",
            "monosemanticity_floor": "neither",
        },
        ("embeddings",),
    ),
    Measure("uniqueness", monosemanticity.uniqueness, {"uniqueness": "higher", "jaccard": "lower"}),
    Measure(
        "seeds",
        seeds.seeds,
        {"stability": "higher", "shared": "higher", "stability_mmcs": "higher"},
        ("seeds",),
    ),
    Measure("spatial", spatial.spatial, {"morans_i": "higher", "non_local": "lower"}, ("patches",)),
    # with labels: factors that the images carry, or the classes of one
    Measure(
        "coverage",
        cases.factor_coverage,
        {"coverage": "higher", "coverage_random": "neither", "board": "higher"},
        ("labels",),
    ),
    Measure(
        "sparse_probes",
        cases.sparse_probes,
        {
            "probe_1": "higher",
            "probe_1_random": "neither",
            "probe_2": "higher",
            "probe_5": "higher",
        },
        ("labels",),
    ),
    Measure(
        "dense_probes",
        cases.dense_probes,
        {"probe_codes": "higher", "probe_x_hat": "higher", "probe_x": "neither"},
        ("labels",),
    ),
    Measure(
        "supervised_axes",
        cases.supervised_axes,
        {
            "sufficiency": "higher",
            "necessity": "higher",
            "control_1": "higher",
            "control_random": "neither",
            "control_kept": "higher",
            "control_ceiling": "neither",
            "control_4": "higher",
        },
        ("labels",),
    ),
    Measure(
        "infomec",
        cases.infomec,
        {
            "modularity": "higher",
            "explicitness": "higher",
            "compactness": "higher",
            "modularity_all": "higher",
        },
        ("labels",),
    ),
    Measure(
        "targeted",
        cases.targeted,
        {
            "tpp_2": "higher",
            "tpp_10": "higher",
            "tpp_50": "higher",
            "tpp_random": "neither",
            "scr_2": "higher",
            "scr_10": "higher",
            "scr_50": "higher",
            "scr_random": "neither",
        },
        ("labels", "classes"),
    ),
    Measure(
        "absorption",
        cases.absorbed,
        {"absorption": "lower", "absorption_full": "lower"},
        ("labels", "classes"),
    ),
    Measure(
        "circularity",
        cases.clock,
        {
            "ring_x": "neither",
            "ring_x_hat": "higher",
            "ring_latents": "higher",
            "ring_rank": "higher",
        },
        ("labels",),
    ),
    Measure("mdl", cases.description, {"mdl_bits": "lower"}),
    # ViSAEBench's seven, by its definitions
    Measure(
        "visaebench.spatial", visaebench.spatial, {"visaebench.spatial": "higher"}, ("patches",)
    ),
    Measure("visaebench.fvu", visaebench.fvu, {"visaebench.fvu": "lower"}),
    Measure(
        "visaebench.monosemanticity",
        visaebench.monosemanticity,
        {"visaebench.monosemanticity": "higher"},
        ("embeddings",),
    ),
    Measure(
        "visaebench.probe_ratio",
        visaebench_labelled.probe_ratio,
        {"visaebench.probe_ratio": "higher"},
        ("classes",),
    ),
    Measure(
        "visaebench.sparse_probe",
        visaebench_labelled.sparse_probe,
        {"visaebench.sparse_probe": "higher"},
        ("classes",),
    ),
    Measure(
        "visaebench.transfer",
        visaebench_labelled.transfer,
        {"visaebench.transfer": "higher"},
        ("classes",),
    ),
    Measure(
        "visaebench.absorption",
        visaebench_labelled.absorption,
        {"visaebench.absorption": "lower"},
        ("labels",),
    ),
)


def missing(case: Case, need: Need) -> str | None:
    """Why a case cannot give what a measure needs; None when it can."""
    given: dict[Need, tuple[bool, str]] = {
        "labels": (
            bool(case.fit.labels.names and case.test.labels.names),
            "the images carry no labels that at least 5 of them share",
        ),
        "classes": (case.label is not None, "no label says which class an image is of; name one"),
        "patches": (case.test.layout.grid is not None, "the site has no patches"),
        "embeddings": (
            case.test.embeddings is not None,
            "no embeddings of the images by another model were given",
        ),
        "seeds": (bool(case.seeds), "only one seed of it was given"),
        "model": (case.splicing is not None, "no model to splice the reconstruction into"),
    }
    there, why = given[need]
    return None if there else why


def measured(case: Case, measure: Measure) -> Scores:
    """The scores of one measure; those that cannot be had say why."""
    reasons = [why for need in measure.needs if (why := missing(case, need))]
    if reasons:
        return {name: undefined(reasons[0]) for name in measure.scores}
    try:
        found = measure.run(case)
    except DataError as error:
        return {name: undefined(str(error)) for name in measure.scores}
    assert set(found) == set(measure.scores), (measure.name, set(found) ^ set(measure.scores))
    return {name: found[name] for name in measure.scores}


def chosen(names: list[str] | None = None) -> tuple[Measure, ...]:
    """Measures by name, in the order of the table; all by default. Raises UnknownName."""
    known = {measure.name for measure in MEASURES}
    for name in names or ():
        if name not in known:
            raise UnknownName("measure", name, known)
    return tuple(m for m in MEASURES if names is None or m.name in names)
