"""Tasks of data that the user has: nothing is downloaded, `root` says where it lies.

Where a data set has no validation part, a tenth of its training images is one, drawn by hash of
their keys (DN-CBM holds out a tenth as well); where its test labels are not public, its
validation part is test, as is usual.
"""

import csv
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vision_sae.data.folder import FolderSource
from vision_sae.data.indexed import IndexedSource
from vision_sae.data.torchvision_sets import TorchvisionSource
from vision_sae.errors import DataError
from vision_sae.recipes.bottleneck.tasks.part import PARTS, Part, Task, chance, select

log = logging.getLogger(__name__)
SHARE = 0.1  # of train, for validation
WATERBIRDS = ("landbird", "waterbird"), ("land", "water")  # what 0 and 1 are of y and of place
LISTED = {"0": "train", "1": "validation", "2": "test"}


def cifar10(root: str, seed: int = 0) -> Task:
    return _cifar("CIFAR10", root, seed)


def cifar100(root: str, seed: int = 0) -> Task:
    return _cifar("CIFAR100", root, seed)


def places365(root: str, seed: int = 0) -> Task:
    """The 256-pixel images; torchvision's train-standard and val."""
    train, test = (
        TorchvisionSource(f"Places365?root={root}&split={split}&small=true")
        for split in ("train-standard", "val")
    )
    task = _two("places365", train, test, root, seed)
    # "/a/airfield", "/a/apartment_building/outdoor"
    words = {c: " ".join(c.split("/")[2:]).replace("_", " ") for c in task.classes}
    return Task(task.name, task.train, task.validation, task.test, words=words)


def folder(root: str, seed: int = 0, name: str = "folder") -> Task:
    """`root/train` and `root/val` (or `root/test`), each with a sub-folder of images per class.

    `root/val` is test where there is no `root/test`. A file `root/classes.txt` may say what the
    sub-folders are, a line each: `n01440764 tench`.
    """
    base = Path(root).expanduser()
    named = {part: base / part for part in ("train", "val", "test") if (base / part).is_dir()}
    if "train" not in named or len(named) < 2:
        raise DataError(f"{base} must hold train/ and val/ or test/, with a folder per class")
    sources = {part: FolderSource(str(path)) for part, path in named.items()}
    for part, source in sources.items():
        if "label" not in source.item(0).about:
            raise DataError(f"{named[part]} has no sub-folder per class")
    words = _class_words(base / "classes.txt")
    if len(sources) == 2:
        test = sources.get("test") or sources["val"]
        return _two(name, sources["train"], test, root, seed, words)
    spec = _spec(name, root, seed)
    parts: dict[str, Any] = {p: select(spec.format(p), s, _label)
             for p, s in zip(PARTS, sources.values(), strict=True)}  # fmt: skip
    return Task(spec.format(""), **parts, words=words)


def imagenet(root: str, seed: int = 0) -> Task:
    """A folder with train/ and val/ of a sub-folder per synset, and classes.txt for zero-shot."""
    return folder(root, seed, "imagenet")


def cub(root: str, seed: int = 0) -> Task:
    """CUB_200_2011 as it is unpacked: images/, images.txt, train_test_split.txt."""
    base = Path(root).expanduser()
    paths = {one[0]: one[1] for one in _columns(base / "images.txt", 2)}
    trains = {paths[number] for number, flag in _columns(base / "train_test_split.txt", 2)
              if flag == "1" and number in paths}  # fmt: skip
    source = FolderSource(str(base / "images"))
    known = {_stem(path): path in trains for path in paths.values()}
    _check_listed([item.key for item in source.items()], known, base / "images.txt")
    spec = _spec("cub", root, seed)
    parts: dict[str, Any] = {p: select(spec.format(p), source, _label,
             lambda key, about, p=p: _part_of(known[key], key, seed) == p) for p in PARTS}  # type: ignore[misc]  # fmt: skip
    words = {c: c.partition(".")[2].replace("_", " ") for c in parts["train"].labels}
    return Task(spec.format(""), **parts, words=words)


def waterbirds(root: str, seed: int = 0) -> Task:
    """Sagawa et al.'s folder (waterbird_complete95_forest2water2): metadata.csv and the images.

    metadata.csv has the columns img_filename, y (1: a waterbird), place (1: on water) and split
    (0, 1, 2: train, validation, test). Its own validation part is used; `seed` changes nothing.
    """
    base = Path(root).expanduser()
    rows = {_stem(row["img_filename"]): row for row in _metadata(base / "metadata.csv")}
    source = FolderSource(str(base))
    _check_listed([item.key for item in source.items()], rows, base / "metadata.csv")
    spec = _spec("waterbirds", root, seed)
    parts: dict[str, Any] = {p: _birds(spec.format(p), source, rows, p) for p in PARTS}
    words = {"landbird": "a landbird", "waterbird": "a waterbird"}
    return Task(spec.format(""), **parts, words=words,
                spurious=("water", "ocean", "lake", "land", "forest", "bamboo"))  # fmt: skip


def _birds(
    name: str, source: IndexedSource, rows: Mapping[str, Mapping[str, str]], part: str
) -> Part:
    chosen = select(
        name, source, lambda about: "", lambda key, about: LISTED[rows[key]["split"]] == part
    )
    birds = [WATERBIRDS[0][int(rows[key]["y"])] for key in chosen.keys]
    places = [WATERBIRDS[1][int(rows[key]["place"])] for key in chosen.keys]
    groups = [f"{bird} on {place}" for bird, place in zip(birds, places, strict=True)]
    return Part(name, source, chosen.positions, birds, groups, chosen.keys)


def _metadata(path: Path) -> list[dict[str, str]]:
    """Raises DataError for a file that is not Waterbirds' metadata.csv."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    allowed = {"y": ("0", "1"), "place": ("0", "1"), "split": tuple(LISTED)}
    for number, row in enumerate(rows, 2):
        wrong = [c for c, values in allowed.items() if row.get(c) not in values]
        if wrong or not row.get("img_filename"):
            came = f"{wrong[0]} is {row.get(wrong[0])!r}" if wrong else "no img_filename"
            raise DataError(
                f"{path}, line {number}: {came}; the columns are img_filename, y and place (0 or "
                "1) and split (0, 1 or 2)"
            )
    return rows


def _cifar(kind: str, root: str, seed: int) -> Task:
    train, test = (TorchvisionSource(f"{kind}?root={root}&split={s}") for s in ("train", "test"))
    return _two(kind.lower(), train, test, root, seed)


def _two(
    name: str, train: IndexedSource, test: IndexedSource, root: str, seed: int,
    words: Mapping[str, str] | None = None,
) -> Task:  # fmt: skip
    """A task of a data set without a validation part."""
    spec = _spec(name, root, seed)
    parts: dict[str, Any] = {p: select(spec.format(p), train, _label,
             lambda key, about, p=p: _part_of(True, key, seed) == p) for p in PARTS[:2]}  # type: ignore[misc]  # fmt: skip
    parts["test"] = select(spec.format("test"), test, _label)
    return Task(spec.format(""), **parts, words=words or {})


def _part_of(is_train: bool, key: str, seed: int) -> str:
    if not is_train:
        return "test"
    return "validation" if chance(seed, key) < SHARE else "train"


def _spec(name: str, root: str, seed: int) -> str:
    from vision_sae.data.options import absolute

    return f"task:{name}/{{}}?root={absolute(root)}&seed={seed}"


def _label(about: Mapping[str, Any]) -> str:
    if "label" not in about:
        raise DataError(f"an image without a label: {dict(about)}")
    return str(about["label"])


def _stem(path: str) -> str:
    """A FolderSource's key."""
    return path.rpartition(".")[0]


def _columns(path: Path, count: int) -> list[tuple[str, ...]]:
    """Lines of words. Raises DataError for a line with fewer."""
    try:
        lines = [line.split() for line in path.read_text("utf-8").splitlines() if line.strip()]
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    for number, line in enumerate(lines, 1):
        if len(line) < count:
            raise DataError(f"{path}, line {number} has {len(line)} columns; {count} are needed")
    return [tuple(line[:count]) for line in lines]


def _class_words(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    lines = [line.split(maxsplit=1) for line in path.read_text("utf-8").splitlines()]
    return {line[0]: line[1].split(",")[0] for line in lines if len(line) == 2}


def _check_listed(keys: list[str], known: Mapping[str, Any], path: Path) -> None:
    """Raises DataError for images that a list leaves out; says how many listed ones are missing."""
    strange = [key for key in keys if key not in known]
    if strange:
        raise DataError(
            f"{len(strange)} images are not in {path}, as {strange[0]!r}, so their part is unknown"
        )
    missing = len(set(known) - set(keys))
    if missing:
        log.warning("%d images that %s lists are not there and are left out", missing, path)


Builder = Callable[..., Task]
NAMED: dict[str, Builder] = {
    "cifar10": cifar10, "cifar100": cifar100, "places365": places365, "imagenet": imagenet,
    "folder": folder, "cub": cub, "waterbirds": waterbirds,
}  # fmt: skip
