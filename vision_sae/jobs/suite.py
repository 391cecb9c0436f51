"""SAEs for many sites of a model from one config: extraction, then all trainings in one pass;
or, with `stored` false, trainings on the model while it runs, once for all sites.

OUT/index.json                the config, and every site with its members
OUT/SITE/acts                 the activations, as `extract` writes them, where they are stored
OUT/SITE/index.json           the site's sweep, as `train_sweep` writes it
OUT/SITE/topk-k8              a member
"""

import json
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field, ValidationError
from torch import Tensor

from vision_sae.config import Frozen, Versioned, plain_error, read_settings
from vision_sae.data import ImageSource, open_data
from vision_sae.data.decode import first_image
from vision_sae.errors import (
    CheckpointError,
    ConfigError,
    OutputExists,
    UnknownName,
    claim_folder,
)
from vision_sae.extract import describe, extract_sites
from vision_sae.files import write_json
from vision_sae.jobs.material import Material
from vision_sae.jobs.settings import recipe
from vision_sae.jobs.sweep import (
    INDEX,
    Member,
    Settings,
    Sweep,
    Tell,
    members_of,
    read_index,
    train_sweeps,
)
from vision_sae.model.adapter import Adapter, load_adapter
from vision_sae.model.probing import all_sites, probe_site
from vision_sae.model.sites import Site
from vision_sae.provenance import Tokens
from vision_sae.sae import SAEConfig
from vision_sae.store import Store, StoreIndex
from vision_sae.store.index import DType
from vision_sae.stream import Stream, streams

ACTS = "acts"
FLOAT = 4  # bytes of a weight


class SuiteConfig(Frozen):
    """A suite: which sites of which model on which images, and what is trained on each.

    `sites` are module paths, or shell patterns in which * stays within a part between dots.
    `settings` are those of every member, `grid` those that vary. With `stored` false nothing is
    extracted: the model runs while SAEs train, `buffer_rows` of each site are shuffled together.
    """

    model: str
    data: str
    sites: list[str] = Field(min_length=1)
    out: str
    tokens: Tokens = "all"
    batch_size: int = Field(64, ge=1)
    dtype: DType = "float32"
    strict: bool = False  # of an extraction: an image that cannot be read stops it
    stored: bool = True
    buffer_rows: int = Field(2**17, ge=1)
    settings: dict[str, Any] = {}
    grid: dict[str, list[Any]] = {}
    together: int | None = Field(None, ge=1)  # members in memory at once


EXAMPLE = {
    "model": "emoji-clip",
    "data": "emoji-canvas",
    "sites": ["visual.transformer.resblocks.*"],
    "tokens": "cls",
    "settings": {"expansion": 4, "steps": 1500, "batch_size": 1024, "lr": 2e-3},
    "grid": {"family": ["topk", "batchtopk"], "k": [4, 8]},
    "out": "suite",
}


class SiteRecord(Frozen):
    """One site of a suite; folders are relative to the suite's."""

    site: str
    folder: str
    extracted: bool = False
    members: list[Member] = []


class SuiteIndex(Versioned):
    """What index.json holds."""

    suite: SuiteConfig
    sites: list[SiteRecord] = []


class SitePlan(NamedTuple):
    """What is to be done at a site, and the bytes it will take."""

    site: Site
    folder: Path
    store: StoreIndex  # as it will be, without shards
    rows: int
    members: dict[str, SAEConfig]
    stored: bool = True

    @property
    def acts_bytes(self) -> int:
        """On disk."""
        if not self.stored:
            return 0
        return self.rows // self.store.tokens_per_image * self.store.image_bytes

    @property
    def sae_bytes(self) -> int:
        return sum(FLOAT * _weights(config) for config in self.members.values())


class SuitePlan(NamedTuple):
    """A suite before it runs: nothing is written yet."""

    config: SuiteConfig
    adapter: Adapter
    source: ImageSource
    members: dict[str, Settings]
    sites: list[SitePlan]

    @property
    def images(self) -> int:
        """How many go through the model, once for all sites."""
        return len(self.source)


def run_suite(
    config: SuiteConfig | SuitePlan | Mapping[str, Any] | Path | str,
    *,
    overwrite: bool = False,
    on_images: Callable[[int], None] = lambda images: None,
    tell: Tell = lambda member, step, numbers: None,
) -> SuiteIndex:
    """Extract every site and train the grid on each; the same call goes on where it stopped.

    `config` is a SuiteConfig, its data, or the path of its JSON file. Raises as `extract` and
    `train_sweep` do, UnknownName for a pattern that matches no site.
    """
    plan = config if isinstance(config, SuitePlan) else plan_suite(config)
    extract_suite(plan, overwrite=overwrite, on_images=on_images)
    sweeps = open_sweeps(plan, overwrite=overwrite)
    write_suite(plan)
    train_sweeps(sweeps, together=plan.config.together, tell=tell)
    return write_suite(plan)


def plan_suite(config: SuiteConfig | Mapping[str, Any] | Path | str) -> SuitePlan:
    """What a suite will do: loads the model and looks at its sites, writes nothing."""
    config = suite_config(config)
    members = members_of(config.grid, config.settings)
    adapter, source = load_adapter(config.model), open_data(config.data)
    example = adapter.prepare([first_image(source)])
    sites = [
        _site_plan(config, adapter, source, site, members)
        for site in matching_sites(adapter, config.sites, example)
    ]
    return SuitePlan(config, adapter, source, members, sites)


def suite_config(config: SuiteConfig | Mapping[str, Any] | Path | str) -> SuiteConfig:
    """From data or a JSON file. Raises ConfigError, UnknownName for a key that is not there."""
    if isinstance(config, SuiteConfig):
        return config
    if isinstance(config, str | Path):
        config = read_json(Path(config))
    for key in config:
        if key not in SuiteConfig.model_fields:
            raise UnknownName("suite key", key, SuiteConfig.model_fields)
    try:
        return SuiteConfig.model_validate(config)
    except ValidationError as error:
        raise ConfigError(plain_error(error)) from None


def read_json(path: Path) -> dict[str, Any]:
    """The settings in a file. Raises ConfigError when it holds no JSON object."""
    try:
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{path} must hold a JSON object of settings")
    return found


# ---- sites


def matching_sites(adapter: Adapter, patterns: Sequence[str], example: Tensor) -> list[Site]:
    """The sites that match any pattern, in the model's order.

    Modules that give no tensor are passed over where a pattern matches others. Raises UnknownName
    with near names for a pattern that matches no module, DataError when none of them is a site.
    """
    paths = [path for path, _ in adapter.model.named_modules() if path]
    sites, found = all_sites(adapter, example), dict[str, Site]()
    for pattern in patterns:
        matched = [path for path in paths if _matches(path, pattern)]
        if not matched:
            raise UnknownName("site", pattern, paths)
        usable = {path: sites[path] for path in matched if path in sites}
        found |= usable or {matched[-1]: probe_site(adapter, matched[-1], example)}  # says why
    return [found[path] for path in paths if path in found]


def _matches(path: str, pattern: str) -> bool:
    mine, theirs = path.split("."), pattern.split(".")
    return len(mine) == len(theirs) and all(map(fnmatchcase, mine, theirs))


def _site_plan(
    config: SuiteConfig,
    adapter: Adapter,
    source: ImageSource,
    site: Site,
    members: Mapping[str, Settings],
) -> SitePlan:
    index = describe(adapter, source, site, config.tokens, config.dtype)
    rows = len(source) * index.tokens_per_image
    configs = {name: recipe(settings).config(site.width) for name, settings in members.items()}
    folder = Path(config.out) / site.name
    return SitePlan(site, folder, index, rows, configs, config.stored)


def _weights(config: SAEConfig) -> int:
    """About how many numbers a saved SAE holds."""
    matrices = config.s * config.d * (1 if config.tied else 2)
    return matrices + config.s + config.d


# ---- what is done


def extract_suite(
    plan: SuitePlan,
    *,
    overwrite: bool = False,
    on_images: Callable[[int], None] = lambda images: None,
) -> None:
    """The stores of all sites, in one pass; finished ones are left as they are."""
    config = plan.config
    _claim(plan, overwrite)
    write_suite(plan)
    if not config.stored:
        return
    extract_sites(
        plan.adapter, plan.source, {site.site.name: site.folder / ACTS for site in plan.sites},
        tokens=config.tokens, batch_size=config.batch_size, dtype=config.dtype,
        strict=config.strict, overwrite=overwrite, on_images=on_images,
    )  # fmt: skip
    write_suite(plan)


def open_sweeps(plan: SuitePlan, *, overwrite: bool = False) -> list[Sweep]:
    """A sweep for each site, on its store or on a stream of the running model."""
    return [
        Sweep(
            Material(source), site.folder, plan.members,
            label=site.site.name, beside=ACTS, overwrite=overwrite,
        )
        for site, source in zip(plan.sites, _sources(plan), strict=True)
    ]  # fmt: skip


def _sources(plan: SuitePlan) -> Sequence[Store | Stream]:
    if plan.config.stored:
        return [Store(site.folder / ACTS) for site in plan.sites]
    c, names = plan.config, [site.site.name for site in plan.sites]
    found = streams(
        plan.adapter, plan.source, names, tokens=c.tokens, batch_size=c.batch_size, dtype=c.dtype,
        buffer_rows=c.buffer_rows,
    )  # fmt: skip
    return list(found.values())


def write_suite(plan: SuitePlan) -> SuiteIndex:
    """Write the index over all sites as they are on disk; sites of earlier configs stay in it."""
    folder, sites = Path(plan.config.out), [_record(plan, site) for site in plan.sites]
    earlier = read_suite(folder).sites if (folder / INDEX).exists() else []
    now = {site.site for site in sites}
    sites += [site for site in earlier if site.site not in now]
    index = SuiteIndex(suite=plan.config, sites=sites)
    write_json(folder / INDEX, index.model_dump())
    return index


def _claim(plan: SuitePlan, overwrite: bool) -> None:
    """Raises OutputExists for a folder of something else, CheckpointError for another suite's."""
    folder = Path(plan.config.out)
    claim_folder(folder, INDEX)
    if not (folder / INDEX).exists():
        return
    found, names = (
        read_suite(folder).suite,
        ("model", "data", "tokens", "dtype", "stored", "buffer_rows", "settings"),
    )
    differ = [n for n in names if getattr(found, n) != getattr(plan.config, n)]
    if differ and not overwrite:
        raise CheckpointError(
            f"{folder} holds a suite with other settings ({', '.join(differ)}); finish it with the "
            "same config, choose another folder, or pass --overwrite"
        )


def read_suite(folder: Path) -> SuiteIndex:
    """The index of a suite. Raises OutputExists when it is of something else."""
    try:
        return read_settings(SuiteIndex, folder / INDEX, CheckpointError)
    except CheckpointError as error:
        raise OutputExists(f"{folder / INDEX} is not of a suite; choose another folder") from error


def _record(plan: SuitePlan, site: SitePlan) -> SiteRecord:
    """A site as it is on disk."""
    planned = [Member(name=name, settings=settings) for name, settings in plan.members.items()]
    begun = (site.folder / INDEX).exists()
    return SiteRecord(
        site=site.site.name,
        folder=site.folder.name,
        extracted=_extracted(site.folder / ACTS / INDEX),
        members=read_index(site.folder).members if begun else planned,
    )


def _extracted(index: Path) -> bool:
    return index.exists() and bool(json.loads(index.read_bytes()).get("complete"))
