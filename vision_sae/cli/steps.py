"""What each command does, between its options and its output."""

import shutil
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from vision_sae import interop, jobs, parallel
from vision_sae.cli import show
from vision_sae.data import ImageSource, open_data
from vision_sae.data.decode import first_image
from vision_sae.errors import ConfigError
from vision_sae.extract import check_source
from vision_sae.files import size
from vision_sae.jobs.extraction import folder_of
from vision_sae.measures.latents import Scan, scan
from vision_sae.model.adapter import Adapter, load_adapter
from vision_sae.model.probing import all_sites
from vision_sae.model.sites import Site
from vision_sae.report import write_report
from vision_sae.report.gather import shown_images
from vision_sae.sae import SAE
from vision_sae.store import Store, StoreIndex
from vision_sae.stream import Stream
from vision_sae.train import TrainConfig


class Extraction(NamedTuple):
    """What an extraction reads, how, and where it writes."""

    model: str
    sites: list[str]
    data: str
    out: Path
    device: str | None = None
    options: dict[str, Any] = {}


def extract(job: Extraction) -> dict[str, StoreIndex]:
    with parallel.join() as group:  # alone without torchrun
        adapter, source = load_adapter(job.model), open_data(job.data)
        adapter.model.to(job.device or group.device)
        shown = group.rank == 0
        # several processes: each tells of its own images, and this one's speak for all
        with show.progress("extract", len(source), "images", shown=shown) as advance:
            found = jobs.extract_to(
                adapter, source, job.sites, job.out, group=group, **job.options,
                on_images=lambda n: advance(n, ""), on_bytes=lambda n: _tell_size(n, job.out),
            )  # fmt: skip
        if shown:
            for site, index in found.items():
                _tell(index, job.out if len(found) == 1 else job.out / folder_of(site))
    return found


def _tell_size(needed: int, out: Path) -> None:
    if needed:
        free = shutil.disk_usage(out).free
        show.console.print(f"{size(needed)} to write to {out}, {size(free)} free")


def _tell(index: StoreIndex, folder: Path) -> None:
    _report_skipped(index)
    rows = index.images * index.tokens_per_image
    show.console.print(
        f"{rows:,} vectors of {index.width} from {index.images:,} images "
        f"({size(rows * index.row_bytes)}) in {folder}"
    )


def _report_skipped(index: StoreIndex) -> None:
    if index.skipped:
        show.console.print(
            f"warning: {len(index.skipped)} unreadable images were skipped (named in index.json):",
            style="yellow",
        )
        for line in index.skipped[:5]:
            show.console.print(f"  {line}")


def sites(model: str, data: str, as_json: bool = False) -> None:
    adapter, source = load_adapter(model), open_data(data)
    check_source(adapter, source)
    found = all_sites(adapter, adapter.prepare([first_image(source)]))
    if as_json:
        show.as_json({path: asdict(site) for path, site in found.items()})
        return
    said = {path: _laid_out(site) for path, site in found.items()}
    modules = [path for path, _ in adapter.model.named_modules() if path]
    show.tree(
        f"sites of {adapter.name}", [p for p in modules if p in said or _leads(p, said)], said
    )


def _leads(path: str, sites: Iterable[str]) -> bool:
    return any(site.startswith(f"{path}.") for site in sites)


def _laid_out(site: Site) -> str:
    parts = [f"{site.layout} {site.tokens} x {site.width}"]
    for count, what in (
        (site.prefix - site.registers, "class token"),
        (site.registers, "register"),
    ):
        parts += [f"{count} {what}{'s' if count > 1 else ''}"] if count else []
    parts += [f"{site.grid[0]} x {site.grid[1]} patches"] if site.grid else []
    return ", ".join(parts)


class Training(NamedTuple):
    """Where a training reads and writes."""

    acts: Path | Extraction  # a folder, or the model that gives them while training
    out: Path
    targets: Path | None = None
    validation: Path | None = None
    validation_targets: Path | None = None
    start: Path | None = None
    overwrite: bool = False
    device: str | None = None


def train(job: Training, settings: dict[str, Any], share: parallel.Kind | None = None) -> SAE:
    steps = TrainConfig.of(steps=settings.get("steps", TrainConfig().steps)).steps
    with parallel.join(share or "rows") as group:  # alone without torchrun
        store = opened(job.acts, group.device)
        with show.progress("train", steps, "steps", shown=group.rank == 0) as advance:
            bar = Follower(advance)
            sae = jobs.train_store(
                store, job.out, targets=_store(job.targets), validation=_store(job.validation),
                validation_targets=_store(job.validation_targets),
                start=job.start, overwrite=job.overwrite, device=job.device, group=group,
                on_log=bar.follow, **settings,
            )  # fmt: skip
            bar.reach(steps)
        if group.rank == 0:
            show.console.print(f"{sae.config.s:,} latents in {job.out}")
    return sae


def reads(
    acts: Path | None, model: str | None, site: str | None, data: str | None,
    device: str | None, options: dict[str, Any],
) -> Path | Extraction:  # fmt: skip
    """A store or a stream. Raises ConfigError for both, neither, or half of a stream."""
    live = {"--model": model, "--site": site, "--data": data}
    given = [name for name, value in live.items() if value]
    if acts and not given:
        return acts
    if acts or not (model and site and data):
        raise ConfigError(
            "a training reads --acts, or --model, --site and --data together; got "
            f"{', '.join([*(['--acts'] if acts else []), *given]) or 'none of them'}"
        )
    return Extraction(model, [site], data, Path(), device, options)


def opened(acts: Path | Extraction, device: str) -> Store | Stream:
    """What a training reads. Raises ConfigError for several sites."""
    if isinstance(acts, Path):
        return Store(acts)
    if len(acts.sites) != 1:
        raise ConfigError(f"a training reads one site; got {', '.join(acts.sites) or 'none'}")
    adapter = load_adapter(acts.model)
    adapter.model.to(acts.device or device)
    return Stream(adapter, open_data(acts.data), acts.sites[0], **acts.options)


def _store(folder: Path | None) -> Store | None:
    return Store(folder) if folder else None


class Follower:
    """Moves a bar to where a training is."""

    def __init__(self, advance: show.Advance) -> None:
        self.advance, self.done = advance, 0

    def follow(self, step: int, numbers: dict[str, float]) -> None:
        note = "  ".join(f"{n} {numbers[n]:.3g}" for n in ("loss", "fvu", "l0", "dead"))
        self.reach(step, note)

    def reach(self, step: int, note: str = "") -> None:
        self.advance(step - self.done, note)
        self.done = step


class Opened(NamedTuple):
    """A saved SAE and what one pass over its store found."""

    folder: Path
    sae: SAE
    store: Store
    found: Scan


def open_sae(folder: Path, acts: Path | None, targets: Path | None = None) -> Opened:
    sae = jobs.load_sae(folder)
    store = Store(acts) if acts else jobs.store_of(folder)
    if sae.config.d_out is not None:
        goal: Store | None = Store(targets) if targets else jobs.store_of(folder, "targets")
    else:
        goal = None
    with show.progress("encode", store.images, "images") as advance:
        found = scan(sae, store, targets=goal, tell=lambda n: advance(n, ""))
    return Opened(folder, sae, store, found)


def convert(
    source: Path, target: Path, from_: str, to: str, overwrite: bool, as_json: bool
) -> None:
    found = interop.detect(source) if from_ == "auto" else from_
    sae = interop.convert(source, target, found, to, overwrite=overwrite)
    if as_json:
        facts = {"source": str(source), "from": found, "target": str(target), "to": to}
        show.as_json(facts | {"config": sae.config.model_dump(mode="json")})
    show.console.print(f"{sae.config.s:,} latents, from {found} to {to}, in {target}")


def evaluate(
    opened: Opened, model: str | None, data: str | None, label: str | None, images: int,
    as_json: bool,
) -> dict[str, float]:  # fmt: skip
    folder, sae, store, found = opened
    numbers: dict[str, float] = found.metrics.as_dict()
    if model:
        source = open_data(data) if data else None
        numbers |= _splice(load_adapter(model), sae, store, source, label, images)
    if as_json:
        show.as_json({**numbers, "frequencies": found.frequencies.tolist()})
    else:
        show.table(f"{folder}: {sae.config.s:,} latents, {sae.config.sparsity.kind}", numbers)
        show.table("latents by share of rows they fire on", found.frequency_histogram())
    return numbers


def _splice(
    adapter: Adapter, sae: SAE, store: Store, source: ImageSource | None, label: str | None,
    images: int,
) -> dict[str, float]:  # fmt: skip
    total = min(images, len(source) if source else store.images)
    with show.progress("splice", total, "images") as advance:
        spliced = jobs.splice_sae(
            adapter, sae, store, source=source, label=label, images=images,
            tell=lambda n: advance(n, ""),
        )  # fmt: skip
    return {
        "zero-shot accuracy": spliced.original.accuracy,
        "with reconstruction": spliced.spliced.accuracy,
        "with zeros": spliced.zero.accuracy,
        "with the mean": spliced.mean.accuracy,
        "recovered": spliced.recovered(),
        "loss recovered": spliced.recovered("loss"),
        "KL to the model's classes": spliced.spliced.kl,
        "KL with the mean": spliced.mean.kl,
        "images spliced": spliced.images,
        "images left out": len(spliced.skipped),
    }


def report(opened: Opened, out: Path, overwrite: bool) -> Path:
    folder, _, store, found = opened
    with show.progress("pictures", len(shown_images(found)), "images") as advance:
        page = write_report(
            folder, out, store=store, found=found, overwrite=overwrite,
            tell=lambda n: advance(n, ""),
        )  # fmt: skip
    show.console.print(f"report: {page}")
    return page
