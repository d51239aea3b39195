"""One array in a .npy or .npz file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from purify_engine.config import require
from purify_engine.data.items import ImageShape, Item, ItemError, Part, Skipped, parts_of

Arrays: TypeAlias = dict[str, np.ndarray]


class ArraySource:
    """The images of a .npy file, or of a .npz file's array `images` (else its only array of three or four dimensions)."""

    kind = "array"
    classes: tuple[str, ...] | None = None
    skipped: Sequence[Skipped] = ()

    def __init__(self, path: Path, shape: ImageShape) -> None:
        self.root, self.shape = path, shape
        self.arrays = load_arrays(path)
        self.key = _images_key(self.arrays, path)
        self.array = self.arrays[self.key]
        require(self.array.dtype == np.uint8 or self.array.dtype.kind == "f", "dtype", "uint8 or a float", str(self.array.dtype))
        self.layout = _layout(self.array.shape, shape)
        require(len(self.array) > 0, "source", "a file with at least one image", str(path))
        self.labels = _labels(self.arrays.get("labels"), len(self.array))

    def __len__(self) -> int:
        return len(self.array)

    def name(self, id: int) -> str:
        return str(id)

    def parts(self, size: int) -> Sequence[Part]:
        return parts_of(len(self), size)

    def items(self, part: Part) -> Iterator[Item]:
        for id in part.ids:
            yield Item(id, str(id), self.array[id])

    def decode(self, item: Item) -> np.ndarray:
        row = item.content
        assert isinstance(row, np.ndarray)
        pixels = row if row.dtype == np.uint8 else self._checked(row.astype(np.float32))
        planes = pixels.transpose(2, 0, 1) if self.layout == "NHWC" else pixels.reshape(self.shape.channels, *pixels.shape[-2:])
        return np.ascontiguousarray(planes)

    def fingerprint(self) -> dict[str, Any]:
        return {"kind": self.kind, "items": len(self), "shape": list(self.array.shape), "dtype": str(self.array.dtype)}

    def _checked(self, pixels: np.ndarray) -> np.ndarray:
        if not np.isfinite(pixels).all():
            raise ItemError("holds NaN or infinity")
        if self.shape.clip:
            pixels = pixels.clip(0, 1)
        if pixels.min() < 0 or pixels.max() > 1:
            found = f"lies in [{pixels.min():.8g}, {pixels.max():.8g}], must lie in [0, 1]"
            raise ItemError(f"{found}: rescale it first (purify, evaluate: or --clip-input)")
        return pixels


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


def _labels(values: np.ndarray | None, count: int) -> np.ndarray | None:
    if values is None:
        return None
    is_one_per_image = values.dtype.kind in "iu" and values.shape == (count,)
    require(is_one_per_image, "labels", f"integers [{count}]", f"{values.dtype} {list(values.shape)}")
    return values.astype(np.int64)
