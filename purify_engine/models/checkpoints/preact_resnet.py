"""Pre-activation ResNets for CIFAR by kuangliu's names: conv1, layer1.0.bn1, ..., bn where it has one, linear.

Weights do not tell what the convolution of a shortcut reads. All published ones with a batch norm at the end read a block's first
activation; of those without, kuangliu's do, and RobustBench's Wong2020Fast and Andriushchenko2020Understanding read its input.
"""

from __future__ import annotations

from purify_engine.config import ClassifierConfig
from purify_engine.models.checkpoints import robustbench_zoo
from purify_engine.models.checkpoints.classifier_names import (
    ALL_RELU,
    COUNTERS,
    ON_THE_COMMAND_LINE,
    classes,
    configured,
    of_four_stages,
    renamed,
)
from purify_engine.models.checkpoints.layout import Given, Layout, Shapes, Told

ALL_ACTIVATED = (
    "shortcuts read a block's first activation, as all published weights of this layout with a batch norm at the end: "
    "say shortcut_reads for others"
)


def recognise(shapes: Shapes, given: Given) -> ClassifierConfig | None:
    """By the stem without a batch norm, the first block and the head."""
    wanted = {"conv1.weight", "layer1.0.bn1.weight", "layer1.0.conv1.weight", "linear.weight"}
    if not wanted <= set(shapes) or "bn1.weight" in shapes:
        return None
    if "shortcut_reads" not in given:
        raise ValueError(
            "shortcut_reads must be stated, for these weights do not tell what shortcuts read: 'activated' as kuangliu's "
            f"PreActResNet, or 'input' as RobustBench's PreActBlock; {ON_THE_COMMAND_LINE}"
        )
    return configured(
        given,
        architecture="preact_resnet",
        **of_four_stages(shapes, "conv1.weight", "linear.weight", r"layer(\d+)\.(\d+)\."),
        final_norm="bn.weight" in shapes,
        shortcut_kernel=1,
        downsample_padding="symmetric",
    )


def told(shapes: Shapes, name: str) -> list[Told]:
    """What RobustBench's zoo says of a file of this name, and what holds for all that are published."""
    if known := robustbench_zoo.told("preact_resnet", name, classes(shapes, "linear.weight")):
        return known
    ends = [Told({"shortcut_reads": "activated"}, ALL_ACTIVATED)] if "bn.weight" in shapes else []
    return [Told({"activation": "relu"}, ALL_RELU), *ends]


def _theirs(name: str, config: ClassifierConfig) -> str:
    return name.replace("convShortcut", "shortcut.0") if name.startswith("layer") else name.replace("bn1.", "bn.")


PREACT_RESNET = Layout(
    name="preact_resnet",
    title="kuangliu and RobustBench: pre-activation ResNets for CIFAR",
    recognise=recognise,
    entries=renamed(_theirs),
    ignored=("model_preact_*", COUNTERS),
    told=told,
)
