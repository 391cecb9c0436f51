"""scikit-learn's 1,797 handwritten digits, 8x8 pixels, as an image task."""

from functools import partial
from typing import Any

from vision_sae.data import Item
from vision_sae.data.indexed import IndexedSource
from vision_sae.errors import require
from vision_sae.recipes.bottleneck.tasks.part import Task, chance, select

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SHARES = {"train": 0.5, "validation": 0.6, "test": 1.0}  # up to which a key's number belongs


class DigitsSource(IndexedSource):
    """Each digit enlarged eight times, grey on black."""

    name = "task:digits"

    def __init__(self) -> None:
        data = require("sklearn.datasets", "report").load_digits()
        self._pixels, self._labels = data.images, data.target

    def __len__(self) -> int:
        return len(self._labels)

    def item(self, i: int) -> Item:
        about = {"label": str(self._labels[i])}
        return Item(f"digit-{i:04d}", about, partial(_picture, self._pixels[i]))


def _picture(pixels: Any) -> Any:
    image = require("PIL.Image", "images").fromarray((pixels * 255 / 16).astype("uint8"))
    return image.resize((64, 64), 0).convert("RGB")


def digits(seed: int = 0) -> Task:
    """Half of the digits are train, a tenth validation and the rest test; `seed` draws them."""
    source = DigitsSource()
    parts: dict[str, Any] = {}
    low = 0.0
    for part, high in SHARES.items():
        name = f"task:digits/{part}?seed={seed}"
        parts[part] = select(
            name, source, lambda about: str(about["label"]),
            lambda key, about, low=low, high=high: low <= chance(seed, key) < high,  # type: ignore[misc]
        )  # fmt: skip
        low = high
    return Task(
        f"task:digits/?seed={seed}", **parts, words=dict(zip("0123456789", WORDS, strict=True))
    )
