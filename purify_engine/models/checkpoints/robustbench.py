"""RobustBench's port of DeepMind's robust networks: Gowal et al. 2020 and 2021, Rebuffi et al. 2021, Wang et al. 2023 and others.

DMWideResNet (init_conv, layer.0.block.0.batchnorm_0, ..., logits) and DMPreActResNet (conv_2d, layer_0.0.batchnorm_0, ...).
Both halve the resolution with zeros below and to the right; the latter has 3x3 shortcuts of a block's input.
"""

from __future__ import annotations

import re

from purify_engine.config import ClassifierConfig
from purify_engine.models.checkpoints import robustbench_zoo
from purify_engine.models.checkpoints.classifier_names import (
    COUNTERS,
    classes,
    configured,
    of_four_stages,
    of_wide_resnet,
    renamed,
)
from purify_engine.models.checkpoints.layout import Given, Layout, Shapes, Told
from purify_engine.models.checkpoints.normalisation import NORMALISATIONS

OF_CLASSES = {10: "cifar10", 100: "cifar100"}
ALL_SILU = "activation silu, as all of this layout in RobustBench's zoo: say activation for others"
ALL_NORMALISED = "normalised by {}'s mean and std, as all of this layout in RobustBench's zoo: say mean and std for others"


def recognise(shapes: Shapes, given: Given) -> ClassifierConfig | None:
    """By the stem, the first block and the head."""
    if {"init_conv.weight", "layer.0.block.0.batchnorm_0.weight", "logits.weight"} <= set(shapes):
        read = of_wide_resnet(shapes, "init_conv.weight", "logits.weight", r"layer\.(\d+)\.block\.(\d+)\.")
        return configured(given, **read, downsample_padding="asymmetric")
    if {"conv_2d.weight", "layer_0.0.batchnorm_0.weight", "logits.weight"} <= set(shapes):
        return configured(
            given,
            architecture="preact_resnet",
            **of_four_stages(shapes, "conv_2d.weight", "logits.weight", r"layer_(\d+)\.(\d+)\."),
            downsample_padding="asymmetric",
            shortcut_reads="input",
            shortcut_kernel=3,
            final_norm=True,
        )
    return None


def told(shapes: Shapes, name: str) -> list[Told]:
    """What RobustBench's zoo says of a file of this name; of any other, what it says of all that it holds for so many classes."""
    count = classes(shapes, "logits.weight")
    if known := robustbench_zoo.told("robustbench", name, count):
        return known
    data = OF_CLASSES.get(count)
    normalised = [Told(NORMALISATIONS[data].fields(), ALL_NORMALISED.format(data))] if data else []
    return [Told({"activation": "silu"}, ALL_SILU), *normalised]


_LAYERS = {"bn1": "batchnorm_0", "bn2": "batchnorm_1", "convShortcut": "shortcut"}
_WIDE = _LAYERS | {"conv1": "conv_0", "conv2": "conv_1"}
_NARROW = _LAYERS | {"conv1": "conv_2d_1", "conv2": "conv_2d_2"}
_ENDS = {"bn1": "batchnorm", "fc": "logits", "linear": "logits"}


def _theirs(name: str, config: ClassifierConfig) -> str:
    if match := re.fullmatch(r"block(\d+)\.layer\.(\d+)\.(\w+)\.(\w+)", name):
        stage, block, layer, kind = match.groups()
        return f"layer.{int(stage) - 1}.block.{block}.{_WIDE[layer]}.{kind}"
    if match := re.fullmatch(r"layer(\d+)\.(\d+)\.(\w+)\.(\w+)", name):
        stage, block, layer, kind = match.groups()
        return f"layer_{int(stage) - 1}.{block}.{_NARROW[layer]}.{kind}"
    layer, _, kind = name.partition(".")
    stem = "init_conv" if config.architecture == "wide_resnet" else "conv_2d"
    return f"{_ENDS.get(layer, stem)}.{kind}"


ROBUSTBENCH = Layout(
    name="robustbench",
    title="RobustBench's DMWideResNet and DMPreActResNet: DeepMind's robust networks and their successors",
    recognise=recognise,
    entries=renamed(_theirs),
    ignored=(COUNTERS,),
    told=told,
)
