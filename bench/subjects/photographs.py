"""Photographs at a network's size, since kernels, clocks and power see real images differently from noise.

Crops of the two photographs that scikit-learn ships; from `build/carry/photographs.pt`, which `make gpu-carry` writes, where
scikit-learn is not installed; else images with the spectrum of photographs, which the lines then say.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.core.run import ROOT

CARRIED = ROOT / "build" / "carry" / "photographs.pt"
SIDE, NUMBER = 64, 256  # of what is carried


def photographs(number: int, side: int) -> tuple[Tensor, str]:
    """Float images [number, 3, side, side] in [0, 1] on the CPU, and what they are."""
    if importlib.util.find_spec("sklearn") is not None and importlib.util.find_spec("PIL") is not None:
        return _crops(number, side), "photographs"
    if CARRIED.exists():
        kept = torch.load(CARRIED, weights_only=True).float() / 255
        chosen = kept[torch.arange(number) % len(kept)]
        return F.interpolate(chosen, (side, side), mode="bilinear", antialias=True).clamp(0, 1), "photographs"
    return _with_their_spectrum(number, side), "noise with the spectrum of photographs"


def carry(path: Path = CARRIED) -> None:
    """Write photographs for a machine without scikit-learn."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save((255 * _crops(NUMBER, SIDE)).round().to(torch.uint8), path)


def _crops(number: int, side: int) -> Tensor:
    """Squares of many sizes from everywhere in the photographs, the same in every run."""
    from sklearn.datasets import load_sample_images

    pictures = [torch.from_numpy(picture.copy()).permute(2, 0, 1).float() / 255 for picture in load_sample_images().images]
    generator, crops = torch.Generator().manual_seed(0), list[Tensor]()
    for index in range(number):
        picture = pictures[index % len(pictures)]
        height, width = picture.shape[1:]
        edge = min(height, width) // (1 + index % 5)
        top, left = (int(torch.randint(0, most - edge + 1, (), generator=generator)) for most in (height, width))
        crop = picture[None, :, top : top + edge, left : left + edge]
        crops.append(F.interpolate(crop, (side, side), mode="bilinear", antialias=True))
    return torch.cat(crops).clamp(0, 1)


def _with_their_spectrum(number: int, side: int) -> Tensor:
    """Amplitudes that fall as one over the frequency (Field 1987), the channels nearly equal."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(number, 3, side, side, generator=generator)
    grey = drawn.mean(1, keepdim=True)
    across, down = torch.fft.rfftfreq(side)[None, :], torch.fft.fftfreq(side)[:, None]
    falling = (across.square() + down.square()).sqrt().clamp_min(1 / side).reciprocal()
    shaped = torch.fft.irfft2(torch.fft.rfft2(3 * grey + drawn) * falling, s=(side, side))
    shaped = shaped / shaped.flatten(1).std(1)[:, None, None, None]
    return (0.5 + 0.2 * shaped).clamp(0, 1)
