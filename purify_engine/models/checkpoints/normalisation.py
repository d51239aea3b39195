"""How a classifier's images are normalised, which its weights do not tell: the published ways by name, and buffers in a file."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from torch import Tensor

from purify_engine.config import one_of, require
from purify_engine.config.networks import NormalisationName
from purify_engine.models.checkpoints.layout import Given, Tensors


class Normalisation(NamedTuple):
    """(images - mean) / std, a number each channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def fields(self) -> dict[str, Any]:
        """As fields of a `ClassifierConfig`."""
        return self._asdict()


# CIFAR's by four digits as in RobustBench (robustbench/model_zoo/architectures/dm_wide_resnet.py) and DiffPure
# (classifiers/cifar10_resnet.py), ImageNet's as in torchvision's documentation of its weights.
NORMALISATIONS: dict[str, Normalisation] = {
    "none": Normalisation((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "half": Normalisation((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "cifar10": Normalisation((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
    "cifar100": Normalisation((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "imagenet": Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}

MOST_CHANNELS = 1024  # of images; a file's buffers may be of any size, and an error that quotes them, too
MEANS, DEVIATIONS = ("mean", "mu", "new_mean"), ("std", "sigma", "new_std")  # the last part of a buffer's name


def stated(given: Given) -> dict[str, Any]:
    """`given` with a named normalisation as mean and std."""
    fields = {key: tuple(value) if key in ("mean", "std") else value for key, value in given.items() if key != "normalisation"}
    if (name := given.get("normalisation")) is None:
        both = ("mean" in fields) == ("std" in fields)
        require(both, "mean and std", "given together", ", ".join(sorted({"mean", "std"} & set(fields))))
        return fields
    one_of("normalisation", name, NormalisationName)
    require(not {"mean", "std"} & set(fields), "normalisation", "given without mean and std", name)
    return fields | NORMALISATIONS[name].fields()


def is_buffer(name: str) -> bool:
    """Whether a tensor of this name is a mean or a deviation that images are normalised by."""
    return name.rpartition(".")[2] in MEANS + DEVIATIONS


def in_file(buffers: Tensors) -> Normalisation | None:
    """The normalisation that a file holds beside its weights; ValueError, in one line, where it is half or no such thing."""
    if not buffers:
        return None
    found = {name.rpartition(".")[2]: tensor for name, tensor in buffers.items()}
    means, stds = ([found[name] for name in names if name in found] for names in (MEANS, DEVIATIONS))
    if len(means) != 1 or len(stds) != 1 or means[0].numel() != stds[0].numel() or means[0].numel() > MOST_CHANNELS:
        raise ValueError(f"a file's normalisation must be one mean and one deviation, got {', '.join(sorted(buffers))}")
    mean, std = _numbers(means[0]), _numbers(stds[0])
    require(all(0 < one < math.inf for one in std), "the file's deviations", "positive", std[:4])
    return Normalisation(mean, std)


def _numbers(tensor: Tensor) -> tuple[float, ...]:
    return tuple(float(number) for number in tensor.double().flatten())
