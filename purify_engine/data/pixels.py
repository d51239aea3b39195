"""One encoded image to one array and back: what is accepted, what is refused, and how every odd format is read."""

from __future__ import annotations

import contextlib
import ctypes
import io
import logging
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile

from purify_engine.data.encoded import MAX_PIXELS, check_size, read_file, without_what_holds_no_pixels
from purify_engine.data.items import ItemError
from purify_engine.data.tiff import MEND, Tiff, read_directory

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF", "JPEG2000")
NETPBM = frozenset({".ppm", ".pgm", ".pbm", ".pnm", ".pfm"})
JPEG2000 = frozenset({".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"})
COMMON = frozenset({".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif"})
HEIC = frozenset({".heic", ".heif"})  # not read, but images: each fails with a line that says so
SUFFIXES = COMMON | NETPBM | JPEG2000 | HEIC

PATIENCE = 4.0  # seconds of a thread's own time for one image; the largest photograph takes two
PROGRESSIVE_BLOCK = 4096  # bytes that a decoder of JPEG is given at once: thousands of scans of a large image fit into 64 KiB
STRIP = 2**22  # pixels that are converted at once, so that no second copy of a large image is held
# By runs alone, which is all that filtered rows of photographs have: as small as at level 4, in half the time.
COMPRESSION = {"compress_level": 1, "compress_type": Image.RLE}

POLICIES = {
    "output": "8-bit PNG, lossless, compressed by runs; values are rounded to the nearest level",
    "exif": "orientation is applied where it can be read",
    "alpha": "composited over white",
    "palette": "expanded to colours",
    "cmyk": "converted to RGB without a colour profile",
    "colour_profiles": "not applied",
    "sixteen_bit": "grey is read at full depth, colour at 8 bits",
    "other_samples": "signed, 32-bit and floating-point pixels are refused",
    "animation": "first frame only",
    "max_pixels": str(MAX_PIXELS),
}

TURNED = {  # by EXIF's orientation: whether rows are reversed, whether columns are, and then whether they change places
    2: (1, -1, False),
    3: (-1, -1, False),
    4: (-1, 1, False),
    5: (1, 1, True),
    6: (-1, 1, True),
    7: (-1, -1, True),
    8: (1, -1, True),
}


def decode(content: bytes | Path, channels: int) -> np.ndarray:
    """An encoded image, or the file that holds it, as [channels, H, W] by `POLICIES`: uint8, or float32 in [0, 1] of 16 bits.

    ItemError, in one line, where it cannot be read. Only `FORMATS` are tried, since Pillow would hand others to outside programs;
    the size is checked before any pixel is.
    """
    if isinstance(content, Path):
        content = read_file(content)
    file = _Patient(without_what_holds_no_pixels(content))
    tiff = read_directory(content)
    if tiff is not None:
        tiff.require_taken()
    try:
        with _opened(file, tiff) as image:
            check_size(*image.size)
            if image.mode == "F":
                raise ItemError(f"floating-point pixels {MEND}")
            image.load()
            return _turned(_pixels(image, channels, tiff.white if tiff else 65535), _orientation(image))
    except ItemError:
        raise
    except MemoryError as broken:
        raise ItemError("the image takes more memory than there is") from broken
    except Exception as broken:  # decoders fail in every way there is: OSError, SyntaxError, struct.error, zlib.error, ...
        file.require_patience()  # decoders in C put an error of their own in its place
        words = " ".join(str(broken).split()) or type(broken).__name__
        raise ItemError(f"cannot read the image: {words}") from broken


def encode(image: np.ndarray) -> bytes:
    """Float [C, H, W] in [0, 1], of one channel or three, as a PNG file."""
    levels = to_levels(image)
    picture = Image.fromarray(levels[0] if len(levels) == 1 else np.ascontiguousarray(levels.transpose(1, 2, 0)))
    file = io.BytesIO()
    picture.save(file, format="PNG", **COMPRESSION)
    return file.getvalue()


def to_levels(pixels: np.ndarray) -> np.ndarray:
    """To the nearest of the 256 levels of [0, 1], uint8."""
    return np.rint(np.clip(pixels, 0, 1) * 255.0).astype(np.uint8)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """While images are decoded: what Pillow and libtiff say of broken ones stays out of standard error; `decode` says it.

    Filters of warnings belong to the process: entered once, by the thread that starts those that decode.
    """
    logger = logging.getLogger("PIL")
    level, handler = logger.level, _hand_libtiffs_errors_to(None)
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")
            yield
    finally:
        logger.setLevel(level)
        _hand_libtiffs_errors_to(handler)


def _hand_libtiffs_errors_to(handler: int | None) -> int | None:
    """The handler before. libtiff writes to standard error itself, a line for each damaged row, and Pillow lets it."""
    try:
        set_handler = ctypes.CDLL(Image.core.__file__).TIFFSetErrorHandler
    except (OSError, AttributeError):  # a Pillow that was built in another way
        return None
    set_handler.argtypes, set_handler.restype = [ctypes.c_void_p], ctypes.c_void_p
    return set_handler(handler)


class _Patient(io.BytesIO):
    """Bytes that are given to a decoder for so long: the longest loops of Pillow are in Python and read a little at a time."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.until = time.thread_time() + PATIENCE

    def require_patience(self) -> None:
        if time.thread_time() > self.until:
            raise ItemError(f"takes longer than {PATIENCE:g} s to decode")

    def read(self, size: int | None = -1, /) -> bytes:
        self.require_patience()
        return super().read(size)


def _opened(file: _Patient, tiff: Tiff | None) -> ImageFile.ImageFile:
    """The image, its header read. In the place of Image.open, which hides why a header was refused and warns of large images."""
    Image.init()
    content = file.getvalue()
    reason = f"begins with {content[:8]!r}, as none of {', '.join(name for name in FORMATS if name in Image.OPEN)} does"
    for name in FORMATS:
        factory, accepts = Image.OPEN.get(name, (None, None))
        is_accepted = factory is not None and (accepts is None or accepts(content[:16]))
        if isinstance(is_accepted, str):
            raise ItemError(f"this Pillow was built without {name}")
        if factory is not None and is_accepted:
            try:
                file.seek(0)
                image = factory(file, "")
            except (SyntaxError, ValueError) as broken:
                reason = f"no good {tiff.described if tiff else name}: {' '.join(str(broken).split())}"
                continue
            if name == "JPEG" and image.info.get("progressive"):
                image.decodermaxblock = PROGRESSIVE_BLOCK
            return image
    raise ItemError(f"cannot read the image: {reason}")


def _pixels(image: Image.Image, channels: int, white: int) -> np.ndarray:
    """All pixels, as they lie in the file."""
    width, height = image.size
    rows = max(1, STRIP // width)
    deep = image.mode.startswith("I")
    pixels = np.empty((channels, height, width), np.float32 if deep else np.uint8)
    for top in range(0, height, rows):
        strip = image if rows >= height else image.crop((0, top, width, min(top + rows, height)))
        pixels[:, top : top + rows] = _grey(strip, white) if deep else _levels(strip, channels)
    return pixels


def _grey(strip: Image.Image, white: int) -> np.ndarray:
    grey = np.asarray(strip, dtype=np.float32) / np.float32(abs(white))
    if not (grey.min() >= 0 and grey.max() <= 1):
        raise ItemError(f"grey pixels beyond the {abs(white)} that stands for white")
    return grey if white > 0 else 1 - grey


def _levels(strip: Image.Image, channels: int) -> np.ndarray:
    if strip.mode in ("La", "RGBa"):
        strip = strip.convert(strip.mode.upper())
    if strip.has_transparency_data:
        background = Image.new("RGBA", strip.size, "white")
        strip = Image.alpha_composite(background, strip.convert("RGBA"))
    levels = np.asarray(strip.convert("L" if channels == 1 else "RGB"))
    return levels.reshape(*levels.shape[:2], channels).transpose(2, 0, 1)


def _orientation(image: Image.Image) -> int:
    """How the image is turned, 1 to 8; 1 where its EXIF data is broken or there is none: the pixels are good without it."""
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:  # as of a decoder: struct.error, KeyError, TypeError, ...
        return 1


def _turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    if orientation not in TURNED:
        return pixels
    row_step, column_step, is_transposed = TURNED[orientation]
    turned = pixels[:, ::row_step, ::column_step]
    return np.ascontiguousarray(turned.swapaxes(1, 2) if is_transposed else turned)
