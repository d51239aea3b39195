"""A NumPy stand-in for a purifier, and images that end the process which works on them. Free of torch: workers start fast."""

from __future__ import annotations

import errno
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

DEADLY, ONCE = 250, 240  # levels of images that end their process: always, and the first time


@dataclass
class Washed:
    """Mixes each image with what its id stands for. died: the file that the first death of ONCE leaves; None spares all.

    pause: seconds that a batch takes.
    """

    died: Path | None = None
    pause: float = 0.0

    def start(self, images: np.ndarray, ids: np.ndarray) -> np.ndarray:
        time.sleep(self.pause)
        corners = images[:, 0, 0, 0]
        if self.died and (corners == DEADLY).any():
            signal.raise_signal(signal.SIGSEGV)
        if self.died and (corners == ONCE).any() and not self.died.exists():
            self.died.touch()
            signal.raise_signal(signal.SIGKILL)
        floats = images / np.float32(255) if images.dtype == np.uint8 else images
        return floats / 2 + (ids % 7 / np.float32(14))[:, None, None, None]

    def finish(self, started: np.ndarray) -> np.ndarray:
        return started.astype(np.float32)

    def is_out_of_memory(self, error: BaseException) -> bool:
        return False

    def identity(self) -> dict[str, Any]:
        return {"compute": "washed"}


class Slow(Washed):
    """Prints a line when a batch is begun, and takes a minute for it."""

    def start(self, images: np.ndarray, ids: np.ndarray) -> np.ndarray:
        print("at work", flush=True)
        time.sleep(60)
        return super().start(images, ids)


class Full(Washed):
    """On a machine without space."""

    def start(self, images: np.ndarray, ids: np.ndarray) -> np.ndarray:
        raise OSError(errno.ENOSPC, "No space left on device", "/somewhere/a.png")


@dataclass(frozen=True)
class Loaded:
    """How a worker gets its stand-in: `Work.load`."""

    compute: Washed

    def __call__(self, number: int) -> Washed:
        return self.compute


def image_folder(root: Path, count: int, levels: dict[int, int] | None = None) -> Path:
    """PNG files 000.png, 001.png, ... of 4x4 pixels in two class folders; `levels` of the first pixel of some, by number."""
    for number in range(count):
        path = root / ("a" if number < count // 2 else "b") / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.full((4, 4, 3), number % 200, np.uint8)
        pixels[0, 0] = (levels or {}).get(number, number % 200)
        Image.fromarray(pixels).save(path)
    return root
