"""What the classifier layouts share: an entry for each of our tensors, and depth, width and classes read off names and shapes."""

from __future__ import annotations

import re
from collections.abc import Callable
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any

import torch

from purify_engine.config import ClassifierConfig
from purify_engine.config.networks import BASIC_DEPTHS, BOTTLENECK_DEPTHS
from purify_engine.models.checkpoints.layout import Entry, Given, Shapes, shapes_of
from purify_engine.models.checkpoints.normalisation import NORMALISATIONS
from purify_engine.models.classifiers import RESNET_BLOCKS, Classifier

COUNTERS = "*num_batches_tracked"  # of batch norms, which evaluation never reads
ON_THE_COMMAND_LINE = "`purify-engine convert` takes it as --classifier-network.NAME"
ALL_RELU = "activation relu, as most published weights of this layout: say activation for others"


def renamed(theirs: Callable[[str, ClassifierConfig], str]) -> Callable[[ClassifierConfig], list[Entry]]:
    """Entries of a layout that stores every tensor as we do, under the name that `theirs` makes of ours in a configuration."""

    def entries(config: ClassifierConfig) -> list[Entry]:
        return [Entry(name, (theirs(name, config),)) for name in own_shapes(config)]

    return entries


@lru_cache(maxsize=8)
def own_shapes(config: ClassifierConfig) -> Shapes:
    """The shape of each of our tensors, by name, but for counters."""
    with torch.device("meta"):
        shapes = shapes_of(Classifier(config).state_dict())
    return {name: shape for name, shape in shapes.items() if not fnmatchcase(name, COUNTERS)}


def sizes(shapes: Shapes, name: str, dims: int) -> tuple[int, ...]:
    """The shape of a tensor of so many dimensions; ValueError, in one line, where it is another's."""
    shape = shapes[name]
    if len(shape) != dims or not all(shape):
        raise ValueError(f"{name} must have {dims} dimensions, none of them empty, got shape {shape}")
    return shape


def stage_depths(shapes: Shapes, block: str) -> tuple[int, ...]:
    """Blocks of each stage. `block` is a pattern of two numbers, of the stage and of the block: r"layer(\\d+)\\.(\\d+)\\."."""
    found = {tuple(map(int, match.groups())) for name in shapes if (match := re.match(block, name))}
    return tuple(sum(1 for stage, _ in found if stage == one) for one in sorted({stage for stage, _ in found}))


def classes(shapes: Shapes, head: str) -> int:
    """Rows of a head, 0 where there is none."""
    return next(iter(shapes.get(head, ())), 0)


def bottleneck_factor(shapes: Shapes, width: int) -> int:
    """How many times wider the inside of the first bottleneck is than `width`; 1 where blocks are none."""
    return max(1, sizes(shapes, "layer1.0.conv1.weight", 4)[0] // width) if "layer1.0.conv3.weight" in shapes else 1


def wide_depth(depths: tuple[int, ...]) -> int:
    """Layers of a WideResNet; ValueError, in one line, where its stages differ."""
    if len(depths) != 3 or len(set(depths)) != 1:
        raise ValueError(f"blocks of the stages of a WideResNet must be three equal numbers, got {depths}")
    return 6 * depths[0] + 4


def resnet_depth(depths: tuple[int, ...], *, bottlenecks: bool) -> int:
    """Layers of a ResNet of four stages; ValueError, in one line, where no published one has these stages."""
    for depth in BOTTLENECK_DEPTHS if bottlenecks else BASIC_DEPTHS:
        if RESNET_BLOCKS[depth] == depths:
            return depth
    kind = "bottlenecks" if bottlenecks else "basic blocks"
    known = ", ".join(str(blocks) for blocks in dict.fromkeys(RESNET_BLOCKS.values()))
    raise ValueError(f"blocks of the stages must be {known}, got {depths} {kind}")


def of_wide_resnet(shapes: Shapes, stem: str, head: str, block: str) -> dict[str, Any]:
    """What shapes tell of a WideResNet, by the names of its ends and the pattern of its blocks (`stage_depths`)."""
    num_classes, features = sizes(shapes, head, 2)
    return {
        "architecture": "wide_resnet",
        "depth": wide_depth(stage_depths(shapes, block)),
        "width": features // 64,
        "num_classes": num_classes,
        "in_channels": sizes(shapes, stem, 4)[1],
    }


def of_four_stages(shapes: Shapes, stem: str, head: str, block: str) -> dict[str, Any]:
    """The same of a ResNet of four stages, whose architecture other names tell."""
    width, in_channels, *_ = sizes(shapes, stem, 4)
    return {
        "depth": resnet_depth(stage_depths(shapes, block), bottlenecks="layer1.0.conv3.weight" in shapes),
        "width": width,
        "num_classes": sizes(shapes, head, 2)[0],
        "in_channels": in_channels,
        "bottleneck_factor": bottleneck_factor(shapes, width),
    }


def configured(given: Given, **read: Any) -> ClassifierConfig:
    """The configuration of what was `read` off the weights, and of what was stated or is known of them.

    ValueError, in one line, where the normalisation is not known, and where what is stated contradicts the weights.
    """
    for name in ("mean", "std"):
        if name not in given:
            raise ValueError(
                f"{name} must be stated, for these weights do not tell how images are normalised: "
                f"state normalisation ({', '.join(NORMALISATIONS)}), or mean and std; {ON_THE_COMMAND_LINE}"
            )
    for name, value in read.items():
        if given.get(name, value) != value:
            raise ValueError(f"{name} must be {value!r}, as the weights have it, got {given[name]!r}")
    return ClassifierConfig(**{**given, **read})
