"""A classifier of one's own to defend: any module from images in [0, 1] to logits, named as `module:factory`."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from purify_engine.config import OwnGuideConfig, require

if TYPE_CHECKING:
    from purify_engine.types import Images, Logits

OWN = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
FACTORY = "module:factory, an importable callable without arguments that returns an nn.Module"


class OwnClassifier(nn.Module):
    """`module` as evaluations take classifiers, frozen and in evaluation mode: images [B, C, H, W] in [0, 1] to logits [B, K]."""

    def __init__(self, module: nn.Module, origin: str) -> None:
        super().__init__()
        self.module = module
        self.origin = origin
        """Who made it: part of what finished results are found by, as code that rounds has no weights that tell."""
        self.config = OwnGuideConfig(network=origin)
        """With `num_classes`, K, once `require_images` has asked."""
        names = getattr(module, "class_names", None)
        self.class_names: tuple[str, ...] | None = None if names is None else tuple(map(str, names))
        self.eval().requires_grad_(False)

    def forward(self, images: Images) -> Logits:
        answer = self.module(images)
        return answer if isinstance(answer, Tensor) else answer.logits  # as Hugging Face's models return them

    @torch.no_grad()
    def require_images(self, images: Images) -> None:
        """ValueError where these are no images for it, or its answers no logits; else `config.num_classes` is known."""
        wanted = f"a classifier of images {list(images.shape)} in [0, 1] that returns float logits [{len(images)}, classes]"
        try:
            logits = self(images)
        except Exception as error:
            raise ValueError(_line(wanted, self.origin, error)) from error
        fits = isinstance(logits, Tensor) and logits.is_floating_point() and logits.shape[:-1] == images.shape[:1]
        require(fits, "classifier", wanted, f"{self.origin}: {getattr(logits, 'dtype', type(logits))} {_shape(logits)}")
        require(logits.shape[-1] >= 2, "classifier", "one of 2 classes at least", f"{self.origin}: {logits.shape[-1]}")
        self.config = OwnGuideConfig(network=self.origin, num_classes=logits.shape[-1])
        names = self.class_names
        named = names is None or len(names) == logits.shape[-1]
        require(named, "class_names of the classifier", f"{logits.shape[-1]} names, one an output", names)


def is_own(name: str) -> bool:
    """Whether `name` is `module:factory`, and no file of that name is there."""
    return OWN.fullmatch(name) is not None and not Path(name).exists()


def own_classifier(name: str) -> OwnClassifier:
    """The module that `name`, "module:factory", returns; modules are looked for in the working directory, too.

    ValueError, in one line, where it cannot be imported or called, or returns something else.
    """
    path, _, attribute = name.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        factory: Any = importlib.import_module(path)
        for part in attribute.split("."):
            factory = getattr(factory, part)
    except Exception as error:  # whatever the user's module does where it is imported
        raise ValueError(_line(FACTORY, name, error)) from error
    require(callable(factory), "classifier", FACTORY, f"{name}, which is no callable but {type(factory).__name__}")
    require(not isinstance(factory, nn.Module), "classifier", FACTORY, f"{name}, which is a module itself, not a function")
    try:
        module = factory()
    except Exception as error:
        raise ValueError(_line(FACTORY, name, error)) from error
    require(isinstance(module, nn.Module), "classifier", FACTORY, f"{name}, which returns {type(module).__name__}")
    return OwnClassifier(module, name)


def _line(wanted: str, got: str, error: Exception) -> str:
    said = " ".join(f"{type(error).__name__}: {error}".split())
    return f"classifier must be {wanted}, got {got} ({said})"


def _shape(value: Any) -> list[int]:
    return list(getattr(value, "shape", ()))
