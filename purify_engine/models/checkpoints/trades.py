"""Classifiers for CIFAR by the names that TRADES gave them (Zhang et al. 2019): ours, and most of RobustBench's.

WideResNets (conv1, block1.layer.0.bn1, ..., bn1, fc) and kuangliu's ResNets (conv1, bn1, layer1.0.conv1, ..., linear), with
DiffPure's ResNet-50 and WRN-70-16 among them; and the 6n + 2 layers of Y. Idelbayev. Some WideResNets hold a `sub_block1`, which
their forward pass never runs.
"""

from __future__ import annotations

from purify_engine.config import ClassifierConfig
from purify_engine.models.checkpoints import robustbench_zoo
from purify_engine.models.checkpoints.classifier_names import (
    ALL_RELU,
    COUNTERS,
    classes,
    configured,
    of_four_stages,
    of_wide_resnet,
    renamed,
    sizes,
    stage_depths,
)
from purify_engine.models.checkpoints.layout import Given, Layout, Shapes, Told


def recognise(shapes: Shapes, given: Given) -> ClassifierConfig | None:
    """By the stem, the first block and the head."""
    if shapes.get("conv1.weight", ())[2:] != (3, 3):
        return None
    if "block1.layer.0.bn1.weight" in shapes and "fc.weight" in shapes:
        read = of_wide_resnet(shapes, "conv1.weight", "fc.weight", r"block(\d+)\.layer\.(\d+)\.")
        return configured(given, **read, downsample_padding="symmetric")
    if {"bn1.weight", "layer1.0.bn1.weight", "layer1.0.conv1.weight", "linear.weight"} <= set(shapes):
        return _narrow(shapes, given)
    return None


def _narrow(shapes: Shapes, given: Given) -> ClassifierConfig:
    block = r"layer(\d+)\.(\d+)\."
    depths = stage_depths(shapes, block)
    if len(depths) != 3 or len(set(depths)) != 1 or "layer1.0.conv3.weight" in shapes:
        return configured(given, architecture="resnet", **of_four_stages(shapes, "conv1.weight", "linear.weight", block))
    width, in_channels, *_ = sizes(shapes, "conv1.weight", 4)
    return configured(
        given,
        architecture="cifar_resnet",
        depth=6 * depths[0] + 2,
        width=width,
        num_classes=sizes(shapes, "linear.weight", 2)[0],
        in_channels=in_channels,
    )


def told(shapes: Shapes, name: str) -> list[Told]:
    """What RobustBench's zoo says of a file of this name; the normalisation of any other must be stated."""
    known = robustbench_zoo.told("trades", name, classes(shapes, "fc.weight") or classes(shapes, "linear.weight"))
    return known or [Told({"activation": "relu"}, ALL_RELU)]


TRADES = Layout(
    name="trades",
    title="TRADES, RobustBench and kuangliu: WideResNets and ResNets for CIFAR",
    recognise=recognise,
    entries=renamed(lambda name, config: name),
    ignored=("sub_block1.*", COUNTERS),
    told=told,
)
