"""EmojiCanvas: 11,770 openly licensed 64x64 emoji pictures with known factors.

Seven drawing styles x 1,562 concepts, captions, keywords, categories; see emoji-canvas/README.md.
"""

import copy
import io
import json
import math
import tarfile
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from vision_sae.data import ImageSource, Item
from vision_sae.data.indexed import IndexedSource
from vision_sae.data.options import joined, split_options
from vision_sae.errors import DataError, UnknownName, require

FOLDER = Path(__file__).parent / "emoji-canvas"
SPLITS = ("train", "validation", "test")
STYLES = (
    "noto",
    "noto-v1",
    "twemoji",
    "emojione",
    "fluent",
    "fluent-flat",
    "fluent-high-contrast",
)
AUGMENTED = "+augmented"
GROUNDS: dict[str, tuple[float, float, float]] = {
    "black": (0.05, 0.05, 0.05),
    "blue": (0.1, 0.25, 0.85),
    "brown": (0.45, 0.27, 0.1),
    "green": (0.1, 0.6, 0.2),
    "orange": (1.0, 0.5, 0.05),
    "purple": (0.5, 0.15, 0.6),
    "red": (0.85, 0.1, 0.1),
    "yellow": (1.0, 0.85, 0.1),
}
ANY_GROUND = "grounds"


def augment(
    rgba: UInt8[Tensor, "b 4 h w"],
    generator: torch.Generator,
    *,
    strength: float = 1.0,
) -> Float[Tensor, "b 3 h w"]:
    """Shift, scale and rotate each drawing, and lay it on a pastel background; values in 0..1.

    Strength 1 is scale 0.65 to 1.0, rotation within 15 degrees and any shift that stays inside;
    strength 0 is the drawing as it is, on white.
    """
    u = torch.rand(len(rgba), 8, generator=generator) * 2 - 1  # [b 8] in -1..1
    colour, alpha = _placed(rgba, u, strength)
    pastel = 1 - strength * (u[:, 4:7] + 1) / 2 * 0.35  # [b 3] in 0.65..1
    return (colour + (1 - alpha) * pastel[:, :, None, None]).clamp(0, 1)


def moved(
    rgba: UInt8[Tensor, "b 4 h w"], generator: torch.Generator
) -> tuple[Float[Tensor, "b 3 h w"], Float[Tensor, "b 1 h w"]]:
    """The shift, scale and rotation of `augment` alone: premultiplied colour, and alpha."""
    return _placed(rgba, torch.rand(len(rgba), 4, generator=generator) * 2 - 1, 1.0)


def on_ground(
    rgba: UInt8[Tensor, "b 4 h w"], generator: torch.Generator, ground: str
) -> Float[Tensor, "b 3 h w"]:
    """Each drawing moved and laid on a flat colour of GROUNDS; "grounds" draws one for each."""
    colour, alpha = moved(rgba, generator)
    flat = torch.tensor(list(GROUNDS.values()) if ground == ANY_GROUND else [GROUNDS[ground]])
    chosen = torch.randint(len(flat), (len(rgba),), generator=generator)
    return (colour + (1 - alpha) * flat[chosen][:, :, None, None]).clamp(0, 1)


def _placed(
    rgba: UInt8[Tensor, "b 4 h w"], u: Float[Tensor, "b _"], strength: float
) -> tuple[Float[Tensor, "b 3 h w"], Float[Tensor, "b 1 h w"]]:
    """Premultiplied colour and alpha after the move that the numbers in -1..1 ask for."""
    scale = 1 - strength * (u[:, 0] + 1) / 2 * 0.35
    angle = u[:, 1] * strength * math.radians(15)
    shift = u[:, 2:4] * (1 - scale)[:, None]
    colour = rgba.float() / 255
    premultiplied = torch.cat([colour[:, :3] * colour[:, 3:], colour[:, 3:]], 1)
    if strength:
        premultiplied = _move(premultiplied, scale, angle, shift)
    return premultiplied[:, :3], premultiplied[:, 3:]


def _move(
    image: Float[Tensor, "b c h w"],
    scale: Float[Tensor, " b"],
    angle: Float[Tensor, " b"],
    shift: Float[Tensor, "b 2"],
) -> Float[Tensor, "b c h w"]:
    """The inverse affine map, sampled bilinearly; transparent outside."""
    cos, sin = angle.cos() / scale, angle.sin() / scale
    rotation = torch.stack([cos, sin, -sin, cos], 1).view(-1, 2, 2)
    offset = -rotation @ shift[:, :, None]
    grid = F.affine_grid(torch.cat([rotation, offset], 2), list(image.shape), align_corners=False)
    return F.grid_sample(image, grid, align_corners=False, padding_mode="zeros")


def decode(webp: bytes) -> UInt8[Tensor, "4 h w"]:
    image = require("PIL.Image", "images")
    pixels = np.array(image.open(io.BytesIO(webp)).convert("RGBA"))
    return torch.from_numpy(pixels).permute(2, 0, 1)


def to_picture(rgb: Float[Tensor, "3 h w"]) -> Any:
    """A PIL image of values in 0..1."""
    # numpy: on so few pixels torch spends its time on waking threads
    pixels = np.rint(rgb.numpy() * 255).astype(np.uint8).transpose(1, 2, 0)
    return require("PIL.Image", "images").fromarray(pixels)


class EmojiCanvas(torch.utils.data.Dataset[tuple[Any, dict[str, Any]]]):
    """One split, indexable: `canvas[i]` is (PIL image, metadata), `canvas.about[i]` the metadata.

    With `augmented`, image i is drawn with a seed of its own, (seed, i): the same every time. With
    `ground`, it is shifted, scaled and rotated likewise and laid on a flat colour, one of GROUNDS,
    or with "grounds" on one of them by chance. Raises UnknownName on an unknown split or ground.
    """

    def __init__(
        self, split: str, *, augmented: bool = False, seed: int = 0, ground: str = ""
    ) -> None:
        if split not in SPLITS:
            raise UnknownName("EmojiCanvas split", split, SPLITS)
        if ground and ground not in (*GROUNDS, ANY_GROUND):
            raise UnknownName("ground", ground, (*GROUNDS, ANY_GROUND))
        self.split, self.augmented, self.seed, self.ground = split, augmented, seed, ground
        self.shards = sorted(FOLDER.glob(f"{split}-*.tar.gz"))
        self.about: list[dict[str, Any]] = []
        self._webp: list[bytes] = []
        for shard in self.shards:
            self._read(shard)
        self._index = {row["key"]: i for i, row in enumerate(self.about)}

    def _read(self, shard: Path) -> None:
        with tarfile.open(shard) as archive:
            for member in archive:
                file = archive.extractfile(member)
                assert file is not None
                if member.name.endswith(".json"):
                    self.about.append(json.load(file))
                else:
                    self._webp.append(file.read())

    def __len__(self) -> int:
        return len(self.about)

    def __getitem__(self, index: int) -> tuple[Any, dict[str, Any]]:
        return self.picture(index), self.about[index]

    def picture(self, index: int) -> Any:
        """The PIL image alone."""
        return self._draw(self._webp[index], range(len(self))[index])

    def _draw(self, webp: bytes, index: int) -> Any:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + index)
        rgba = decode(webp)[None]
        if self.ground:
            return to_picture(on_ground(rgba, generator, self.ground)[0])
        return to_picture(augment(rgba, generator, strength=float(self.augmented))[0])

    def rgba(self) -> UInt8[Tensor, "n 4 h w"]:
        """All drawings with their transparency, for whoever augments in batches."""
        return torch.stack([decode(webp) for webp in self._webp])

    def pipeline(self, **options: Any) -> Any:
        """The same rows as a `webdataset.WebDataset` of (PIL image, metadata) pairs.

        The options are WebDataset's; a picture is `canvas[i]`'s in whatever order it comes.
        """
        webdataset = require("webdataset", "images")
        rows = webdataset.WebDataset(
            [str(shard) for shard in self.shards], **({"shardshuffle": False} | options)
        )
        return rows.map(self._row)

    def _row(self, sample: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        about = json.loads(sample["json"])
        return self._draw(sample["webp"], self._index[about["key"]]), about


def emoji_canvas(split: str = "train", *, augmented: bool = False, seed: int = 0) -> EmojiCanvas:
    """The embedded data set. Raises UnknownName on an unknown split."""
    return EmojiCanvas(split, augmented=augmented, seed=seed)


@lru_cache(len(SPLITS))
def _drawings(split: str) -> EmojiCanvas:
    """Read once, whoever draws them how."""
    return EmojiCanvas(split)


class CanvasSource(IndexedSource):
    """A split of EmojiCanvas as an image source; `about` is the metadata without the key.

    Each drawing comes `views` times in a row, moved anew each time; with several views or a ground
    the key says which: `dove/twemoji@green.1`.
    """

    def __init__(
        self, split: str, *, augmented: bool = False, ground: str = "", views: int = 1
    ) -> None:
        self.views = [copy.copy(_drawings(split)) for _ in range(views)]
        for seed, view in enumerate(self.views):
            view.augmented, view.ground, view.seed = augmented, ground, seed
        self.canvas = self.views[0]
        how = AUGMENTED if augmented else f"+{ground}" if ground else ""
        self.name = joined(f"emoji-canvas:{split}{how}", {"views": str(views)} if views > 1 else {})

    def __len__(self) -> int:
        return len(self.canvas) * len(self.views)

    def item(self, i: int) -> Item:
        row, view = divmod(range(len(self))[i], len(self.views))
        about = {name: value for name, value in self.canvas.about[row].items() if name != "key"}
        return Item(self._key(row, view), about, partial(self.views[view].picture, row))

    def _key(self, row: int, view: int) -> str:
        which = [self.canvas.ground] if self.canvas.ground else []
        which += [str(view)] if len(self.views) > 1 else []
        return "@".join(filter(None, [self.canvas.about[row]["key"], ".".join(which)]))


def source(argument: str) -> ImageSource:
    """The data plugin: a split, also as `train+augmented`, `train+green`, `train+grounds`.

    `train+augmented?views=2` has each drawing twice; nothing means train. Raises UnknownName,
    DataError.
    """
    name, options = split_options(argument)
    split, _, how = (name or "train").partition("+")
    hows = ("augmented", ANY_GROUND, *GROUNDS)
    if split not in SPLITS or (how and how not in hows) or name.endswith("+"):
        allowed = [s + more for s in SPLITS for more in ("", *(f"+{h}" for h in hows))]
        raise UnknownName("EmojiCanvas split", argument, allowed)
    views = options.pop("views", "1")
    if options or not views.isdecimal() or not int(views) or (int(views) > 1 and not how):
        raise DataError(
            f"emoji-canvas:{argument}: views=N is the only setting, of a split that is moved, as "
            "in train+augmented?views=2"
        )
    ground = how if how != "augmented" else ""
    return CanvasSource(split, augmented=how == "augmented", ground=ground, views=int(views))
