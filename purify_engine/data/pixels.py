"""One image file to one array and back: what is accepted, what is refused, and how every odd format is read."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from purify_engine.data.items import ItemError

MAX_PIXELS = 50_000_000
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})

POLICIES = {
    "output": "8-bit PNG, lossless; values are rounded to the nearest level",
    "exif": "orientation is applied",
    "alpha": "composited over white",
    "palette": "expanded to colours",
    "cmyk": "converted to RGB without a colour profile",
    "sixteen_bit": "grey is read at full depth, colour at 8 bits",
    "animation": "first frame only",
    "max_pixels": str(MAX_PIXELS),
}


def decode(content: bytes | Path, channels: int) -> np.ndarray:
    """The image as uint8, or float32 in [0, 1], [channels, H, W], by `POLICIES`; ItemError where it cannot be read.

    Only the named formats are tried, since Pillow would hand others to outside programs; the size is checked before any pixel is.
    """
    try:
        with Image.open(content if isinstance(content, Path) else io.BytesIO(content), formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise ItemError(f"{width}x{height} pixels exceed the cap of {MAX_PIXELS}")
            return _pixels(image, channels)
    except ItemError:
        raise
    except Exception as broken:  # decoders fail in every way there is: OSError, SyntaxError, struct.error, zlib.error, ...
        raise ItemError(_one_line(broken, content)) from broken


def encode(image: np.ndarray) -> bytes:
    """float32 [C, H, W] in [0, 1] as a PNG file."""
    levels = to_levels(image)
    picture = Image.fromarray(levels[0] if len(levels) == 1 else np.ascontiguousarray(levels.transpose(1, 2, 0)))
    file = io.BytesIO()
    picture.save(file, format="PNG")
    return file.getvalue()


def to_levels(pixels: np.ndarray) -> np.ndarray:
    """To the nearest of the 256 levels of [0, 1], uint8."""
    return np.rint(np.clip(pixels, 0, 1) * 255.0).astype(np.uint8)


def _pixels(image: Image.Image, channels: int) -> np.ndarray:
    picture = ImageOps.exif_transpose(image)
    if picture.mode == "F":
        raise ItemError("floating-point pixels have no agreed range; convert the image to 8 or 16 bits")
    if picture.mode.startswith("I"):
        grey = np.asarray(picture, dtype=np.float32) / 65535.0
        return np.repeat(grey[None], channels, axis=0)
    if picture.has_transparency_data:
        background = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(background, picture.convert("RGBA"))
    levels = np.asarray(picture.convert("L" if channels == 1 else "RGB"))
    return np.ascontiguousarray(levels.reshape(*levels.shape[:2], channels).transpose(2, 0, 1))


def _one_line(broken: Exception, content: bytes | Path) -> str:
    said = str(broken).replace(str(content), content.name) if isinstance(content, Path) else str(broken)
    words = " ".join(said.split()) or "no reason given"
    return f"cannot read the image: {type(broken).__name__}: {words}"
