"""What a comparison compares: SAEs from folders, and baselines that are fitted to the same rows."""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from vision_sae.errors import ConfigError, DataError, MismatchError
from vision_sae.jobs.loading import load_sae, record_of
from vision_sae.jobs.sweep import INDEX, read_index
from vision_sae.matching import check_match
from vision_sae.measures import baselines
from vision_sae.measures.case import Dictionary, Sample
from vision_sae.sae import SAE
from vision_sae.store import Store

SEEDS = {"seed", "initial_seed", "order"}  # what the same SAE trained again differs in


@dataclass(frozen=True)
class Subject:
    """One row of a comparison. `open` gives the dictionary; `digest` is of all that makes it.

    Subjects of one `group` are the same but for their seeds.
    """

    name: str
    kind: Literal["sae", "baseline"]
    family: str
    latents: int | None
    digest: str
    group: str
    open: Callable[[], Dictionary]


def found_saes(paths: Iterable[Path | str]) -> list[Path]:
    """The folders of SAEs; that of a sweep stands for its finished members. Raises ConfigError."""
    found: list[Path] = []
    for path in map(Path, paths):
        if not _is_sweep(path):
            found.append(path)
            continue
        members = [path / m.name for m in read_index(path).members if m.finished]
        if not members:
            raise ConfigError(f"the sweep {path} has no finished member yet")
        found += members
    twice = {path for path in found if found.count(path) > 1}
    if twice:
        raise ConfigError(f"named twice: {', '.join(sorted(map(str, twice)))}")
    return found


def unfinished(paths: Iterable[Path | str]) -> list[str]:
    """Members of sweeps that are left out because they are still trained."""
    sweeps = [path for path in map(Path, paths) if _is_sweep(path)]
    return [str(p / m.name) for p in sweeps for m in read_index(p).members if not m.finished]


def _is_sweep(path: Path) -> bool:
    try:
        return "members" in json.loads((path / INDEX).read_bytes())
    except (OSError, ValueError, TypeError):
        return False


def subjects_of(paths: Sequence[Path | str], store: Store) -> list[Subject]:
    """SAEs that belong to a store, ours or of another library.

    Raises ConfigError, CheckpointError; DataError for a transcoder; MismatchError, which names the
    SAE, for one of another model, site, kind of token or width.
    """
    folders = found_saes(paths)
    names = short_names(folders)
    return [_subject(path, names[path], store) for path in folders]


def _subject(path: Path, name: str, store: Store) -> Subject:
    sae = load_sae(path)
    if sae.config.d_out is not None:
        raise DataError(f"{name} is a transcoder; a comparison is of SAEs of one site")
    try:
        check_match(sae, store)
    except MismatchError as error:
        raise MismatchError(
            f"{name} cannot be compared here: {error}. All SAEs of a comparison read one site"
        ) from None
    return Subject(
        name=name,
        kind="sae",
        family=_family(sae),
        latents=sae.config.s,
        digest=digest(sae.config.model_dump_json(), *sae.state_dict().values()),
        group=_group(path, sae),
        open=lambda: load_sae(path),
    )


def _family(sae: SAE) -> str:
    """As it is called in tables; a nested one apart from the others."""
    kind = sae.config.sparsity.kind
    return f"{kind}, nested" if sae.config.nest else kind


def _group(path: Path, sae: SAE) -> str:
    """Alike for trainings that differ in seeds alone; of others' SAEs nothing is known."""
    record = record_of(path)
    if not record:
        return digest(str(path))
    kept = {name: value for name, value in record.items() if name not in SEEDS}
    return digest(json.dumps(kept, sort_keys=True), sae.config.model_dump_json())


def short_names(paths: Sequence[Path]) -> dict[Path, str]:
    """As little of each path's end as tells them apart."""
    whole = [path.resolve() for path in paths]
    for length in range(1, max((len(p.parts) for p in whole), default=1) + 1):
        names = ["/".join(p.parts[-length:]) for p in whole]
        if len(set(names)) == len(names):
            break
    return dict(zip(paths, names, strict=True))


def baseline_subjects(
    specs: Sequence[str], fit: Sample, latents: int, seed: int, fitted_on: str
) -> list[Subject]:
    """Baselines by name, fitted when they are opened. Raises UnknownName, ConfigError."""
    return [_baseline(spec, fit, latents, seed, fitted_on) for spec in dict.fromkeys(specs)]


def _baseline(spec: str, fit: Sample, latents: int, seed: int, fitted_on: str) -> Subject:
    name, k = baselines.parse(spec)
    return Subject(
        name=name if k is None else f"{name}:{k}",
        kind="baseline",
        family=name,
        latents=None,
        digest=digest("baseline", spec, str(latents), str(seed), fitted_on),
        group=digest("baseline", spec),
        open=lambda: baselines.fit(spec, fit.rows, latents=latents, seed=seed, about=fit.about),
    )


def digest(*parts: str | Tensor) -> str:
    """A short hash of texts and tensors."""
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            found.update(f"{tuple(part.shape)}{part.dtype}".encode())
            found.update(part.detach().cpu().contiguous().float().numpy().tobytes())
        else:
            found.update(part.encode() + b"\0")
    return found.hexdigest()[:24]
