"""One report on what an SAE knows of the known factors, between a floor and a ceiling."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vision_sae.errors import DataError, MismatchError
from vision_sae.matching import check_match
from vision_sae.measures import baselines
from vision_sae.measures.case import Case, Dictionary, sample_of
from vision_sae.measures.labelled import cases, probing
from vision_sae.measures.labelled.coverage import coverage
from vision_sae.measures.labelled.rows import ImageRows, of_case
from vision_sae.measures.labelled.supervised import supervised
from vision_sae.measures.labelled.task import Task, held_out
from vision_sae.measures.score import Score, Scores
from vision_sae.sae import SAE
from vision_sae.store import Store

FLOOR, LABELS, CEILING = "random SAE", "supervised", "ceiling"
Tell = Callable[[str], None]  # the column that is done


@dataclass(frozen=True)
class FactorReport:
    """Scores of each column: the SAEs by name, then neurons, random SAE, supervised and ceiling.

    coverage_by_factor: F1 of the best latent, mean over a factor's values, of each column.
    values, left_out: which factor values were looked for, and which not, and why.
    """

    scores: dict[str, Scores]
    coverage_by_factor: dict[str, dict[str, float]]
    values: list[tuple[str, str]]
    left_out: dict[str, str]
    train_images: int
    test_images: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON: undefined scores have the value null and a reason."""
        return {
            "scores": {
                column: {name: score.as_dict() for name, score in scores.items()}
                for column, scores in self.scores.items()
            },
            "coverage_by_factor": self.coverage_by_factor,
            "values": ["=".join(value) for value in self.values],
            "left_out": self.left_out,
            "train_images": self.train_images,
            "test_images": self.test_images,
        }


def factor_report(
    saes: dict[str, SAE] | SAE,
    acts: Store | Path | str,
    *,
    validation: Store | Path | str | None = None,
    factors: Sequence[str] | None = None,
    cross: Sequence[tuple[str, str]] = (),
    seed: int = 0,
    tell: Tell = lambda column: None,
) -> FactorReport:
    """Coverage, boards, probes, supervised-dictionary axes and InfoMEC, told of held-out images.

    Latents, thresholds and probes are chosen on `acts`, of which a fifth (by the hash of their
    keys) is held out, or else on all of it with `validation`, other images of the site. `factors`
    names those to look for (by default all with single values), `cross` adds conjunctions of two.

    Beside the SAEs stand the site's own dimensions (neurons), an untrained SAE of the same width
    and sparsity (the floor), the dictionary of the labels themselves, and probes on x (the ceiling
    of its probes). Raises MismatchError, UnknownName, and DataError for a transcoder or images of
    which nothing is known.
    """
    named = saes if isinstance(saes, dict) else {"SAE": saes}
    store, other = _opened(acts), None if validation is None else _opened(validation)
    _check(named, store, other)
    fit, test = _samples(store, other)
    about = (tuple(factors) if factors is not None else None, tuple(cross))
    given = cases.known(fit, test, *about)
    dictionaries: dict[str, Dictionary] = dict(named)
    first = next(iter(named.values()))
    k = _typical_k(Case("", first, fit, test))
    dictionaries[FLOOR] = baselines.fit(f"random:{k}", fit.rows, latents=first.config.s, seed=seed)
    dictionaries["neurons"] = baselines.fit("neurons", fit.rows)
    scores: dict[str, Scores] = {}
    by_factor: dict[str, dict[str, float]] = {}
    for name, dictionary in dictionaries.items():
        rows = of_case(Case(name, dictionary, fit, test))
        scores[name], by_factor[name] = _column(rows, given)
        tell(name)
    scores[LABELS], by_factor[LABELS] = _column(supervised(rows, given.task), given)
    tell(LABELS)
    ceiling = probing.probed(given.reader.probe(rows.x), given.task)
    scores[CEILING], by_factor[CEILING] = _ceiling(ceiling, rows, given)
    tell(CEILING)
    train, there = int(given.task.train.sum()), int(given.task.test.sum())
    return FactorReport(scores, by_factor, given.task.names, given.task.left_out, train, there)


def columns_of(saes: int) -> int:
    """How often `factor_report` will tell of a column."""
    return saes + 4


def _opened(store: Store | Path | str) -> Store:
    return store if isinstance(store, Store) else Store(store)


def _check(saes: dict[str, SAE], store: Store, validation: Store | None) -> None:
    if not saes:
        raise DataError("name an SAE to report on")
    for name, sae in saes.items():
        if sae.config.d_out is not None:
            raise DataError(f"{name} is a transcoder; factors are looked for in SAEs")
        check_match(sae, store)
    if validation is not None:
        reason = store.index.provenance.differs(validation.index.provenance)
        if reason:
            raise MismatchError(f"{validation.folder} is no other part of {store.folder}: {reason}")


def _samples(store: Store, validation: Store | None) -> tuple[Any, Any]:
    if validation is not None:
        return sample_of(store, range(store.images)), sample_of(
            validation, range(validation.images)
        )
    there = held_out(store.keys)
    sides = [(~there).nonzero()[:, 0].tolist(), there.nonzero()[:, 0].tolist()]
    if not all(sides):
        raise DataError(f"{store.images} images are too few to hold a fifth of them out")
    return sample_of(store, sides[0]), sample_of(store, sides[1])


def _typical_k(case: Case) -> int:
    """The mean number of active latents per row, which the floor gets too."""
    return max(1, round(float(case.on_test.codes.l0.double().mean())))


def _column(rows: ImageRows, given: cases.Known) -> tuple[Scores, dict[str, float]]:
    values: Task = given.task
    scores = (
        cases.coverage_scores(rows, values)
        | cases.sparse_scores(rows, values)
        | cases.dense_scores(rows, values)
        | cases.axes_scores(rows, given)
        | cases.infomec_scores(rows, values)
    )
    return scores, values.by_factor(coverage(rows.codes, values, draws=1).f1)


def _ceiling(
    found: probing.Probed, rows: ImageRows, given: cases.Known
) -> tuple[Scores, dict[str, float]]:
    """What a linear probe on x reads, in the place of each score that it bounds."""
    means, n = found.means(), len(given.task.names)
    f1, control = Score(means["f1"], n=n), cases.control_scores(rows, given)
    same = ("coverage", *(f"probe_{k}" for k in probing.KS), "probe_codes", "probe_x_hat")
    scores = dict.fromkeys(same, f1) | {"board": Score(means["board"], n=n)}
    limit = control["control_ceiling"]
    scores |= {name: limit for name in ("control_1", "control_4", "control_ceiling")}
    return scores, given.task.by_factor(found.rates.f1)
