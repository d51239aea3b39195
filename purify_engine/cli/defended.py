"""From a word on the command line to the classifier that is defended, or that attacks are transferred from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from purify_engine.config import require

if TYPE_CHECKING:
    from torch import nn

    from purify_engine.purifier import GuidedPurifier


def load_defended(
    name: str, ours: GuidedPurifier, *, normalisation: str | None = None, revision: str | None = None
) -> nn.Module:
    """The classifier of an embedded name, a folder, a checkpoint file, a Hub id or `module:factory`, where `ours` computes.

    Frozen, in evaluation mode, float32. ValueError where it is none, or none for the images that `ours` purifies.
    """
    import torch

    from purify_engine.evaluation.own_classifier import is_own, own_classifier
    from purify_engine.presets import load_classifier

    channels, size = ours.denoiser.config.in_channels, ours.denoiser.config.image_size
    if is_own(name):
        require(normalisation is None, "normalisation", f"left out: {name} sees images in [0, 1]", normalisation)
        own = own_classifier(name).to(ours.device)
        own.require_images(torch.full((2, channels, size, size), 0.5, device=ours.device))
        return own
    fields: dict[str, Any] = {} if normalisation is None else {"normalisation": normalisation}
    found = load_classifier(name, revision=revision, **fields)
    its = found.config.in_channels
    require(its == channels, "classifier", f"one for images of {channels} channels", its)
    return found.to(ours.device)


def classes_of(classifier: nn.Module) -> tuple[int, tuple[str, ...] | None]:
    """How many classes a classifier tells apart, and their names where it has them."""
    known: Any = classifier
    return known.config.num_classes, known.class_names
