"""Any image file to upright, opaque, 8-bit RGB."""

from io import BytesIO
from typing import Any

import numpy as np

from vision_sae.errors import DataError, require

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def to_rgb(file: str | BytesIO, key: str) -> Any:
    """Decode to RGB: turned as EXIF says, transparency on white, the first frame of several.

    Raises DataError that names the key and the reason.
    """
    pil = require("PIL.Image", "images")
    try:
        with pil.open(file) as image:
            return upright_rgb(image)
    except pil.UnidentifiedImageError as error:
        raise DataError(f"{key}: not an image that Pillow can read") from error
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error, ...
        raise DataError(f"{key}: {error or type(error).__name__}") from error


def upright_rgb(image: Any) -> Any:
    """A PIL image as `to_rgb` gives it. Raises what Pillow raises, DataError for float pixels."""
    return _opaque(require("PIL.ImageOps", "images").exif_transpose(image))


def _opaque(image: Any) -> Any:
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = rgba.copy()
        white.paste("white", (0, 0, *rgba.size))
        white.alpha_composite(rgba)
        image = white
    if image.mode.startswith("I"):
        image = _to_8_bits(image)
    if image.mode == "F":
        raise DataError("floating-point pixels, whose range is not known; save it with 8 bits")
    return image.convert("RGB")


def _to_8_bits(image: Any) -> Any:
    """The high byte of 16-bit grey; Pillow's own conversion clips nearly all of it to white."""
    grey = np.asarray(image).astype(np.int64) >> 8
    return require("PIL.Image", "images").fromarray(grey.clip(0, 255).astype(np.uint8))
