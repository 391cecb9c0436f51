"""Thumbnails packed into a few sheets, so that 10,000 images are not 10,000 files."""

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vision_sae.errors import require
from vision_sae.files import write_bytes

COLUMNS = 24  # 24 x 24 cells of 64 pixels: about 0.5 to 1 MB a sheet
GUTTER = 2  # each cell's border is repeated outwards: smooth scaling then never mixes neighbours


class Sprites(NamedTuple):
    """Where thumbnails are: image i is cell i % per_sheet, row by row, of files[i // per_sheet]."""

    files: list[str]
    size: int  # side of a thumbnail in pixels
    gutter: int
    columns: int
    per_sheet: int

    def place(self, index: int) -> tuple[str, int, int]:
        """Sheet, and left and top pixel of the thumbnail of image `index`."""
        sheet, cell = divmod(index, self.per_sheet)
        row, column = divmod(cell, self.columns)
        pitch = self.size + 2 * self.gutter
        return self.files[sheet], column * pitch + self.gutter, row * pitch + self.gutter


def write_sprites(thumbnails: Sequence[Any], folder: Path) -> Sprites:
    """Pack square PIL thumbnails into folder/sheet-*.webp; all get the side of the largest."""
    size = max((max(t.size) for t in thumbnails), default=64)
    columns = max(1, min(COLUMNS, math.ceil(math.sqrt(len(thumbnails)))))
    per_sheet = columns * columns
    files: list[str] = []
    folder.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(thumbnails), per_sheet):
        name = f"sheet-{len(files):03d}.webp"
        write_bytes(folder / name, _sheet(thumbnails[start : start + per_sheet], size, columns))
        files.append(name)
    return Sprites(files, size, GUTTER, columns, per_sheet)


def _sheet(thumbnails: Sequence[Any], size: int, columns: int) -> bytes:
    pitch = size + 2 * GUTTER
    rows = math.ceil(len(thumbnails) / columns)
    pixels = np.zeros((rows * pitch, columns * pitch, 3), np.uint8)
    for cell, thumbnail in enumerate(thumbnails):
        top, left = (pitch * place for place in divmod(cell, columns))
        pixels[top : top + pitch, left : left + pitch] = _framed(thumbnail, size)
    data = io.BytesIO()
    sheet = require("PIL.Image", "report").fromarray(pixels)
    sheet.save(data, "WEBP", quality=90, method=4, use_sharp_yuv=True)
    return data.getvalue()


def _framed(thumbnail: Any, size: int) -> Any:
    """The thumbnail's pixels, its border repeated GUTTER times outwards."""
    picture = thumbnail.convert("RGB")
    if picture.size != (size, size):
        picture = picture.resize((size, size))
    return np.pad(np.asarray(picture), ((GUTTER, GUTTER), (GUTTER, GUTTER), (0, 0)), mode="edge")
