"""Where images come from: a folder of images with its class folders, one image file, or one array in a .npy or .npz file.

An item's index is its image id, and so the key of its noise: by sorted relative path in a folder, by row in an array.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor

from purify_engine.config import require
from purify_engine.data.pixels import SUFFIXES, ItemError, decode, pixels_in
from purify_engine.types import Images, Labels

Arrays: TypeAlias = dict[str, np.ndarray]


@dataclass(frozen=True)
class ImageShape:
    """Which images are taken."""

    channels: int
    """Of an image: 1 grey, 3 colour."""
    size: int | None = None
    """Pixels a side; None where any size will do."""
    refusal: Callable[[int, int], str | None] | None = field(default=None, compare=False)  # two functions are hardly ever equal
    """(height, width) -> why such images are not taken, in words, or None; decides in the place of `size`."""
    clip: bool = False
    """Numbers of arrays that lie outside of [0, 1] are cut to it, in place of refusing their image."""

    def refused(self, height: int, width: int) -> str | None:
        """Why images of `height` by `width` pixels are not taken, None where they are."""
        if self.refusal is not None:
            return self.refusal(height, width)
        is_taken = self.size is None or height == width == self.size
        return None if is_taken else f"the network takes {self.size}x{self.size}: resize it first"


class Source(Protocol):
    """A finite, indexed set of images."""

    names: tuple[str, ...]  # of the images; the position is the image id
    skipped: tuple[str, ...]  # what lies there and is no image
    labels: Labels | None  # int64 [N], where the source has them

    def numbers(self, index: int) -> int:
        """How many numbers item `index` will be, before it is read; 0 where that cannot be told."""
        ...

    def read(self, index: int) -> Tensor:
        """Item `index` as float32 [C, H, W] in [0, 1]; ItemError where that item is no good."""
        ...


class FolderSource:
    """Every image below a folder, in the sorted order of its relative path."""

    def __init__(self, root: Path, shape: ImageShape) -> None:
        require(shape.channels in (1, 3), "channels", "1 or 3 for an image folder", shape.channels)
        files = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
        self.root, self.shape = root, shape
        self.names = tuple(name for name in files if _is_image(Path(name)))
        self.skipped = tuple(sorted(set(files) - set(self.names)))
        require(bool(self.names), "source", f"a folder with images in it ({', '.join(sorted(SUFFIXES))})", str(root))
        self.labels = _class_folders(self.names)

    def numbers(self, index: int) -> int:
        return self.shape.channels * pixels_in(self.root / self.names[index])

    def read(self, index: int) -> Tensor:
        return _decoded(self.root / self.names[index], self.shape)


class FileSource:
    """One image file."""

    skipped: tuple[str, ...] = ()

    def __init__(self, path: Path, shape: ImageShape) -> None:
        require(shape.channels in (1, 3), "channels", "1 or 3 for an image file", shape.channels)
        self.path, self.shape = path, shape
        self.names: tuple[str, ...] = (path.name,)
        self.labels: Labels | None = None

    def numbers(self, index: int) -> int:
        return self.shape.channels * pixels_in(self.path)

    def read(self, index: int) -> Tensor:
        return _decoded(self.path, self.shape)


class ArraySource:
    """The images of a .npy file, or of a .npz file's array `images` (else its only array of three or four dimensions)."""

    skipped: tuple[str, ...] = ()

    def __init__(self, path: Path, shape: ImageShape) -> None:
        self.path, self.shape = path, shape
        self.arrays = load_arrays(path)
        self.key = _images_key(self.arrays, path)
        self.array = self.arrays[self.key]
        require(self.array.dtype == np.uint8 or self.array.dtype.kind == "f", "dtype", "uint8 or a float", str(self.array.dtype))
        self.layout = _layout(self.array.shape, shape)
        require(len(self.array) > 0, "source", "a file with at least one image", str(path))
        self.names = tuple(str(row) for row in range(len(self.array)))
        self.labels = _labels(self.arrays.get("labels"), len(self.array))

    def numbers(self, index: int) -> int:
        return int(self.array[index].size)

    def read(self, index: int) -> Tensor:
        row = self.array[index]
        pixels = row / np.float32(255) if row.dtype == np.uint8 else row.astype(np.float32)
        if not np.isfinite(pixels).all():
            raise ItemError("holds NaN or infinity")
        if self.shape.clip:
            pixels = pixels.clip(0, 1)
        if pixels.min() < 0 or pixels.max() > 1:
            found = f"lies in [{pixels.min():.8g}, {pixels.max():.8g}], must lie in [0, 1]"
            raise ItemError(f"{found}: rescale it first (purify, evaluate: or --clip-input)")
        planes = pixels.transpose(2, 0, 1) if self.layout == "NHWC" else pixels.reshape(self.shape.channels, *pixels.shape[-2:])
        return torch.from_numpy(np.ascontiguousarray(planes))


def open_source(path: Path, shape: ImageShape) -> FolderSource | FileSource | ArraySource:
    """The source at `path`, by what it is. ValueError, in a line that says what to do, where it is of no kind."""
    require(path.exists(), "source", "an existing image folder, .npy or .npz file, or image file", str(path))
    if path.is_dir():
        return FolderSource(path, shape)
    if path.suffix.lower() in SUFFIXES:
        return FileSource(path, shape)
    images = f"or an image ({', '.join(sorted(SUFFIXES))})"
    require(path.suffix in (".npy", ".npz"), "source", f"an image folder, a .npy or a .npz file, {images}", str(path))
    return ArraySource(path, shape)


def read_all(source: Source) -> Images:
    """Every image of a source, float32 [N, C, H, W]; ValueError names the first that is no good."""
    images: list[Tensor] = []
    for index, name in enumerate(source.names):
        try:
            images.append(source.read(index))
        except ItemError as reason:
            raise ValueError(f"every image must be readable, {name}: {reason}") from reason
        same = images[-1].shape == images[0].shape
        require(same, name, f"of the first image's shape {list(images[0].shape)}", list(images[-1].shape))
    return torch.stack(images)


def load_arrays(path: Path) -> Arrays:
    """The arrays of a .npy or .npz file by name; a pickle in it is refused, never run."""
    try:
        loaded = np.load(path, allow_pickle=False)
        return {"images": loaded} if isinstance(loaded, np.ndarray) else {name: loaded[name] for name in loaded.files}
    except Exception as broken:  # zipfile, zlib and numpy each have their own ways to fail
        reason = " ".join(str(broken).split()).replace("allow_pickle=False", "pickles are never loaded")
        raise ValueError(f"source must be a readable .npy or .npz file without pickles, got {str(path)!r}: {reason}") from broken


def _images_key(arrays: Arrays, path: Path) -> str:
    candidates = ["images"] if "images" in arrays else [name for name, array in arrays.items() if array.ndim in (3, 4)]
    contents = ", ".join(f"{name} {array.shape}" for name, array in arrays.items()) or "nothing"
    require(len(candidates) == 1, "source", "a file with one array named images", f"{path.name} with {contents}")
    return candidates[0]


def _layout(shape: tuple[int, ...], wanted: ImageShape) -> str:
    channels, size = wanted.channels, wanted.size
    side = size or "any"
    layouts: dict[str, tuple[int | str, ...]] = {"NCHW": (channels, "H", "W"), "NHWC": ("H", "W", channels)}
    if channels == 1:
        layouts["NHW"] = ("H", "W")
    mend = ""
    for layout, axes in layouts.items():
        if len(shape) == len(axes) + 1 and all(axis in (n, "H", "W") for n, axis in zip(shape[1:], axes, strict=True)):
            height, width = (shape[1 + axes.index(axis)] for axis in ("H", "W"))
            refused = wanted.refused(height, width)
            if refused is None:
                return layout
            mend = mend or f"; {refused}"
    said = f"[N, {channels}, {side}, {side}] or [N, {side}, {side}, {channels}]"
    raise ValueError(f"images must be {said}, got {list(shape)}{mend}")


def _decoded(path: Path, shape: ImageShape) -> Tensor:
    image = decode(path, shape.channels)
    height, width = image.shape[1:]
    refused = shape.refused(height, width)
    if refused is not None:
        raise ItemError(f"is {width}x{height} pixels, {refused}")
    return image


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def _class_folders(names: tuple[str, ...]) -> Labels | None:
    """The sorted names of the first folders are the classes 0, 1, ...; None where an image lies in no folder."""
    folders = [name.split("/")[0] for name in names if "/" in name]
    if len(folders) < len(names):
        return None
    number = {folder: index for index, folder in enumerate(sorted(set(folders)))}
    return torch.tensor([number[folder] for folder in folders], device="cpu")


def _labels(values: np.ndarray | None, count: int) -> Labels | None:
    if values is None:
        return None
    is_one_per_image = values.dtype.kind in "iu" and values.shape == (count,)
    require(is_one_per_image, "labels", f"integers [{count}]", f"{values.dtype} {list(values.shape)}")
    return torch.from_numpy(values.astype(np.int64))
