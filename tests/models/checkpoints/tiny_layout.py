"""Layouts for tests: our own names, with `net.` before those of a U-Net, which tell the number of channels."""

from __future__ import annotations

import torch

from purify_engine.config import ClassifierConfig, ScheduleConfig, UNetConfig
from purify_engine.models.checkpoints.layout import Entry, Layout
from purify_engine.models.classifiers import Classifier
from purify_engine.models.unet import UNet

SMALL = {"image_size": 8, "base_channels": 8, "channel_mult": (1, 2), "num_res_blocks": 1, "attention_resolutions": ()}
COSINE = ScheduleConfig(kind="cosine", num_timesteps=400)
COUNTERS = "num_batches_tracked"


def recognise_unet(shapes, given):
    first = shapes.get("net.conv_in.weight")
    return None if first is None else UNetConfig(**{**SMALL, "in_channels": first[1], **given})


def recognise_classifier(shapes, given):
    if "linear.weight" not in shapes:
        return None
    grey = {"in_channels": 1, "mean": (0.3,), "std": (0.4,)}
    small = {"architecture": "cifar_resnet", "depth": 8, "width": 8, "activation": "silu", **grey}
    return ClassifierConfig(**{**small, "num_classes": shapes["linear.weight"][0], **given})


def entries(config):
    with torch.device("meta"):
        network = UNet(config) if isinstance(config, UNetConfig) else Classifier(config)
    prefix = "net." if isinstance(config, UNetConfig) else ""
    return [Entry(name, (f"{prefix}{name}",)) for name in network.state_dict() if not name.endswith(COUNTERS)]


UNET = Layout("tiny", "of the tests", recognise_unet, entries, schedule=lambda config, beside: COSINE)
CLASSIFIER = Layout("tiny-classifier", "of the tests", recognise_classifier, entries, ignored=(f"*{COUNTERS}",))
