"""Thumbnails packed into a few sheets, so that 10,000 images are not 10,000 files."""

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vision_sae.errors import require
from vision_sae.report.files import write_bytes

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
    files = []
    for start in range(0, len(thumbnails), per_sheet):
        name = f"sheet-{len(files):03d}.webp"
        write_bytes(folder / name, _sheet(thumbnails[start : start + per_sheet], size, columns))
        files.append(name)
    return Sprites(files, size, GUTTER, columns, per_sheet)


def _sheet(thumbnails: Sequence[Any], size: int, columns: int) -> bytes:
    pitch = size + 2 * GUTTER
    rows = math.ceil(len(thumbnails) / columns)
    sheet = require("PIL.Image", "report").new("RGB", (columns * pitch, rows * pitch))
    for cell, thumbnail in enumerate(thumbnails):
        row, column = divmod(cell, columns)
        sheet.paste(_framed(thumbnail, size), (column * pitch, row * pitch))
    data = io.BytesIO()
    sheet.save(data, "WEBP", quality=90, method=4, use_sharp_yuv=True)
    return data.getvalue()


def _framed(thumbnail: Any, size: int) -> Any:
    """The thumbnail with its border pixels repeated GUTTER times outwards."""
    picture = thumbnail.convert("RGB")
    if picture.size != (size, size):
        picture = picture.resize((size, size))
    pitch, end = size + 2 * GUTTER, size + GUTTER
    framed = picture.resize((pitch, pitch))  # right in the corners at least; edges follow
    framed.paste(picture, (GUTTER, GUTTER))
    for step in range(GUTTER):
        framed.paste(framed.crop((GUTTER, 0, GUTTER + 1, pitch)), (step, 0))
        framed.paste(framed.crop((end - 1, 0, end, pitch)), (end + step, 0))
    for step in range(GUTTER):
        framed.paste(framed.crop((0, GUTTER, pitch, GUTTER + 1)), (0, step))
        framed.paste(framed.crop((0, end - 1, pitch, end)), (0, end + step))
    return framed
