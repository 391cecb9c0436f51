"""Compare SAEs of one site, ours or others', and baselines, by the measures of the suite."""

import inspect
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from vision_sae.errors import ConfigError, DataError, MismatchError, UnknownName
from vision_sae.files import write_json
from vision_sae.jobs.splicing import Splicer
from vision_sae.jobs.subjects import (
    Subject,
    baseline_subjects,
    digest,
    found_saes,
    subjects_of,
    unfinished,
)
from vision_sae.measures import suite
from vision_sae.measures.case import Case, Dictionary, Sample, sample_of
from vision_sae.measures.factors import folds
from vision_sae.measures.score import Score, Scores
from vision_sae.measures.splice import Spliced
from vision_sae.measures.suite import Better, Measure
from vision_sae.model.adapter import Adapter
from vision_sae.sae import SAE
from vision_sae.store import Store

ROWS = 2**17  # that a sample holds, unless told otherwise
LABELS = ("label", "category")  # what is taken for an image's class where nothing is said
Tell = Callable[[str, str], None]  # subject, measure


@dataclass(frozen=True)
class Entry:
    """One subject and its scores by name."""

    name: str
    kind: str
    family: str
    latents: int
    group: str
    scores: Scores

    def as_dict(self) -> dict[str, Any]:
        scores = {name: score.as_dict() for name, score in self.scores.items()}
        return asdict(replace(self, scores={})) | {"scores": scores}


@dataclass(frozen=True)
class Comparison:
    """Every subject's scores; `better` says of each score which way is better.

    `facts` tell what was measured on what, in words.
    """

    entries: tuple[Entry, ...]
    better: dict[str, Better]
    facts: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        """For JSON: undefined scores have the value null and a reason."""
        entries = [entry.as_dict() for entry in self.entries]
        return {"facts": self.facts, "better": self.better, "entries": entries}


def compare(
    saes: Sequence[Path | str],
    acts: Store | Path | str,
    *,
    validation: Store | Path | str | None = None,
    baselines: Sequence[str] = (),
    measures: Sequence[str] | None = None,
    embeddings: Store | Path | str | None = None,
    adapter: Adapter | None = None,
    splice_images: int = 500,
    label: str | None = None,
    images: int | None = None,
    latents: int | None = None,
    seed: int = 0,
    cache: Path | str | None = None,
    tell: Tell = lambda subject, measure: None,
) -> Comparison:
    """Measure SAEs and baselines on the same images.

    `saes` are folders or files that `load_sae` reads; a sweep's folder stands for its members.
    Scores are of `validation`, a store of the same site on other images; without it a fifth of
    `acts` is held out of what is fitted (the SAEs saw it all the same, which `facts` say). Probes
    and baselines are fitted on `acts`. `images` is how many of each are read (by default 131,072
    rows). `embeddings` is a store of another model on the images that are measured, for
    MonoSemanticity; with `adapter`, the model of the site, reconstructions are spliced into it.
    `label` says which class an image is of (by default `label`, else `category`). `latents` is the
    width of baselines that have a choice (by default the SAEs' median). What was measured before is
    read from the folder `cache`, so the same call resumes.

    Raises ConfigError for nothing to compare, UnknownName for a measure, baseline or label that is
    not there, MismatchError for SAEs and stores of different sites, DataError for transcoders,
    CheckpointError, StoreError.
    """
    table = suite.chosen(list(measures) if measures is not None else None)
    material = _Material(_opened(acts), _maybe(validation), _maybe(embeddings), label, images)
    subjects = subjects_of(saes, material.store)
    width = latents or _median([s.latents or 0 for s in subjects]) or 4 * material.store.width
    subjects += baseline_subjects(baselines, material.fit, width, seed, material.fitted_on)
    if not subjects:
        raise ConfigError("nothing to compare: name an SAE, a sweep or a baseline")
    splicer = Splicer(adapter, material.tested, images=splice_images) if adapter else None
    job = _Job(subjects, table, material, splicer, Path(cache) if cache else None, tell)
    better = {name: way for measure in table for name, way in measure.scores.items()}
    facts = material.facts(width)
    if absent := unfinished(saes):
        facts["left out"] = f"unfinished members of sweeps: {', '.join(absent)}"
    return Comparison(tuple(job.entries()), better, facts)


def count_of(
    saes: Sequence[Path | str], baselines: Sequence[str], measures: Sequence[str] | None
) -> int:
    """How often `compare` will tell of a measure of a subject."""
    table = suite.chosen(list(measures) if measures is not None else None)
    return (len(found_saes(saes)) + len(dict.fromkeys(baselines))) * len(table)


def _opened(store: Store | Path | str) -> Store:
    return store if isinstance(store, Store) else Store(store)


def _maybe(store: Store | Path | str | None) -> Store | None:
    return None if store is None else _opened(store)


def _median(numbers: Sequence[int]) -> int:
    return sorted(numbers)[len(numbers) // 2] if numbers else 0


@dataclass(frozen=True, eq=False)
class _Material:
    """What is fitted on and what is measured on."""

    store: Store
    validation: Store | None
    embeddings: Store | None
    wanted_label: str | None
    images: int | None

    def __post_init__(self) -> None:
        if self.validation is None:
            return
        reason = self.store.index.provenance.differs(self.validation.index.provenance)
        if reason:
            raise MismatchError(
                f"{self.validation.folder} cannot measure SAEs of {self.store.folder}: {reason}"
            )

    @property
    def tested(self) -> Store:
        return self.validation or self.store

    @cached_property
    def _held_out(self) -> list[bool]:
        """Which images of the one store are not fitted on."""
        return [bool(f == 0) for f in folds(self.store.keys)]

    @cached_property
    def fit_images(self) -> list[int]:
        every = range(self.store.images)
        return self._some([i for i in every if self.validation or not self._held_out[i]])

    @cached_property
    def test_images(self) -> list[int]:
        every = range(self.tested.images)
        return self._some([i for i in every if self.validation or self._held_out[i]])

    def _some(self, images: list[int]) -> list[int]:
        """Spread evenly, no more than are wanted."""
        most = self.images or max(1, ROWS // self.store.index.tokens_per_image)
        if len(images) <= most:
            return images
        return [images[i] for i in torch.linspace(0, len(images) - 1, most).long().tolist()]

    @cached_property
    def fit(self) -> Sample:
        return sample_of(self.store, self.fit_images)

    @cached_property
    def test(self) -> Sample:
        sample = sample_of(self.tested, self.test_images)
        return replace(sample, embeddings=self._embedded(sample)) if self.embeddings else sample

    def _embedded(self, sample: Sample) -> Float[Tensor, "images e"]:
        """Each image's mean token of the other model, as unit vectors, found by its key."""
        assert self.embeddings is not None
        number = {key: i for i, key in enumerate(self.embeddings.keys)}
        absent = [key for key in sample.keys if key not in number]
        if absent:
            raise DataError(
                f"{self.embeddings.folder} lacks {len(absent)} of the {sample.images} images that "
                f"are measured, such as {absent[0]!r}; embed the images of {self.tested.folder}"
            )
        acts = self.embeddings.acts([number[key] for key in sample.keys])
        return normalize(acts.mean(1), dim=1)

    @cached_property
    def label(self) -> str | None:
        known = {key for about in self.tested.about for key in about}
        if self.wanted_label and self.wanted_label not in known:
            raise UnknownName("label", self.wanted_label, known)
        return self.wanted_label or next((key for key in LABELS if key in known), None)

    @cached_property
    def fitted_on(self) -> str:
        return digest(_of_store(self.store), json.dumps(self.fit_images))

    @cached_property
    def tested_on(self) -> str:
        parts = [_of_store(self.tested), json.dumps(self.test_images), str(self.label)]
        return digest(*parts, _of_store(self.embeddings) if self.embeddings else "")

    def facts(self, latents: int) -> dict[str, str]:
        p = self.store.index.provenance
        site = f"{p.site}, {p.tokens} tokens, {self.store.width} wide"
        measured = f"{self.test.images:,} images of {self.tested.index.provenance.data}"
        fitted = f"{self.fit.images:,} images of {p.data}"
        held = "" if self.validation else " (the SAEs may have been trained on them)"
        facts = {"model": p.model, "site": site, "measured on": measured + held}
        facts |= {"probes and baselines fitted on": fitted, "classes": self.label or "none"}
        facts["width of k-means and random"] = f"{latents:,} latents"
        if self.embeddings:
            facts["seen by"] = self.embeddings.index.provenance.model
        return facts


def _of_store(store: Store) -> str:
    return digest(*(shard.checksum for shard in store.index.shards))


@dataclass(frozen=True, eq=False)
class _Job:
    """Subject by subject, and measure by measure; each result is kept as soon as it is there."""

    subjects: Sequence[Subject]
    measures: Sequence[Measure]
    material: _Material
    splicer: Splicer | None
    cache: Path | None
    tell: Tell

    def entries(self) -> Iterator[Entry]:
        for subject in self.subjects:
            case: Case | None = None
            scores: dict[str, Score] = {}
            for measure in self.measures:
                found = self._kept(subject, measure)
                if found is None:
                    case = case or self._case(subject)
                    found = suite.measured(case, measure)
                    self._keep(subject, measure, found, case)
                scores |= found
                self.tell(subject.name, measure.name)
            latents = subject.latents or self._width(subject, case)
            yield Entry(subject.name, subject.kind, subject.family, latents, subject.group, scores)

    def _case(self, subject: Subject) -> Case:
        dictionary = subject.open()
        return Case(
            subject.name,
            dictionary,
            self.material.fit,
            self.material.test,
            seeds=[other.open() for other in self._seeds(subject)],
            label=self.material.label,
            splicing=partial(self._spliced, dictionary) if self.splicer else None,
        )

    def _spliced(self, dictionary: Dictionary) -> Spliced:
        assert self.splicer is not None
        if isinstance(dictionary, SAE):
            return self.splicer(dictionary)
        return self.splicer(lambda x: dictionary(x).x_hat)

    def _seeds(self, subject: Subject) -> list[Subject]:
        return [s for s in self.subjects if s.group == subject.group and s is not subject]

    def _path(self, subject: Subject, measure: Measure) -> Path | None:
        """Named by all that the scores depend on, the measure's own source included."""
        if self.cache is None:
            return None
        parts = [subject.digest, self.material.fitted_on, self.material.tested_on, measure.name]
        parts.append(inspect.getsource(inspect.getmodule(measure.run) or suite))
        if "seeds" in measure.needs:
            parts += sorted(other.digest for other in self._seeds(subject))
        if "model" in measure.needs:
            parts.append(self.splicer.digest if self.splicer else "no model")
        return self.cache / f"{digest(*parts)}.json"

    def _kept(self, subject: Subject, measure: Measure) -> Scores | None:
        path = self._path(subject, measure)
        if path is None or not path.exists():
            return None
        try:
            data = json.loads(path.read_bytes())["scores"]
            return {name: Score.from_dict(data[name]) for name in measure.scores}
        except (ValueError, KeyError, TypeError):
            return None  # of another version: measured again

    def _keep(self, subject: Subject, measure: Measure, found: Scores, case: Case) -> None:
        path = self._path(subject, measure)
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        scores = {name: score.as_dict() for name, score in found.items()}
        facts = {"subject": subject.name, "latents": len(case.dictionary.W_dec)}
        write_json(path, facts | {"measure": measure.name, "scores": scores})

    def _width(self, subject: Subject, case: Case | None) -> int:
        """Of a baseline: its case's, or what was kept with its scores."""
        if case is not None:
            return len(case.dictionary.W_dec)
        path = self._path(subject, self.measures[0])
        assert path is not None
        return int(json.loads(path.read_bytes())["latents"])
