"""Purify adversarial images with guided diffusion: `GuidedPurifier` in Python, `purify-engine` on the command line.

Names load on first use (PEP 562), so that importing the package, and the command line's help, cost no import of torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from purify_engine.config import ClassifierConfig as ClassifierConfig
    from purify_engine.config import GuidanceConfig as GuidanceConfig
    from purify_engine.config import PurifierConfig as PurifierConfig
    from purify_engine.config import ScheduleConfig as ScheduleConfig
    from purify_engine.config import UNetConfig as UNetConfig
    from purify_engine.defended import DefendedClassifier as DefendedClassifier
    from purify_engine.models import Classifier as Classifier
    from purify_engine.models import Denoiser as Denoiser
    from purify_engine.models import OwnDenoiser as OwnDenoiser
    from purify_engine.models import OwnGuide as OwnGuide
    from purify_engine.models import UNet as UNet
    from purify_engine.presets import list_purifiers as list_purifiers
    from purify_engine.presets import load_classifier as load_classifier
    from purify_engine.purifier import GuidedPurifier as GuidedPurifier

_HOMES = {
    "GuidedPurifier": "purify_engine.purifier",
    "DefendedClassifier": "purify_engine.defended",
    "list_purifiers": "purify_engine.presets",
    "load_classifier": "purify_engine.presets",
    "UNet": "purify_engine.models",
    "Denoiser": "purify_engine.models",
    "Classifier": "purify_engine.models",
    "OwnDenoiser": "purify_engine.models",
    "OwnGuide": "purify_engine.models",
    "PurifierConfig": "purify_engine.config",
    "GuidanceConfig": "purify_engine.config",
    "ScheduleConfig": "purify_engine.config",
    "UNetConfig": "purify_engine.config",
    "ClassifierConfig": "purify_engine.config",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
