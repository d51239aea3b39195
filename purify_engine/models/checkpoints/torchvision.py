"""torchvision's ResNets and wide ResNets for ImageNet: conv1 (7x7), bn1, layer1.0.conv1, ..., layer1.0.downsample.0, fc."""

from __future__ import annotations

from purify_engine.config import ClassifierConfig
from purify_engine.models.checkpoints import robustbench_zoo
from purify_engine.models.checkpoints.classifier_names import (
    ALL_RELU,
    COUNTERS,
    classes,
    configured,
    of_four_stages,
    renamed,
    sizes,
)
from purify_engine.models.checkpoints.layout import Given, Layout, Shapes, Told
from purify_engine.models.checkpoints.normalisation import NORMALISATIONS

IMAGENET = "normalised by ImageNet's mean and std, as torchvision says of its weights: say mean and std for others"


def recognise(shapes: Shapes, given: Given) -> ClassifierConfig | None:
    """By the 7x7 stem, the first block and the head. ResNeXts, whose 3x3 convolutions have groups, are refused."""
    wanted = {"bn1.weight", "layer1.0.conv1.weight", "layer1.0.conv2.weight", "fc.weight"}
    if shapes.get("conv1.weight", ())[2:] != (7, 7) or not wanted <= set(shapes):
        return None
    out_channels, a_group, *_ = sizes(shapes, "layer1.0.conv2.weight", 4)
    if out_channels != a_group:
        raise ValueError(f"convolutions in groups (ResNeXt) are not supported, got {a_group} channels each of {out_channels}")
    read = of_four_stages(shapes, "conv1.weight", "fc.weight", r"layer(\d+)\.(\d+)\.")
    return configured(given, architecture="imagenet_resnet", **read)


def told(shapes: Shapes, name: str) -> list[Told]:
    """What RobustBench's zoo says of a file of this name; else torchvision's documentation, where there are 1000 classes."""
    if known := robustbench_zoo.told("torchvision", name, classes(shapes, "fc.weight")):
        return known
    imagenet = [Told(NORMALISATIONS["imagenet"].fields(), IMAGENET)] if classes(shapes, "fc.weight") == 1000 else []
    return [Told({"activation": "relu"}, ALL_RELU), *imagenet]


def _theirs(name: str, config: ClassifierConfig) -> str:
    return name.replace("shortcut", "downsample").replace("linear", "fc")


TORCHVISION = Layout(
    name="torchvision",
    title="torchvision: ResNets and wide ResNets for ImageNet",
    recognise=recognise,
    entries=renamed(_theirs),
    ignored=(COUNTERS,),
    told=told,
)
