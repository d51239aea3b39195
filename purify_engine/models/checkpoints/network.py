"""A network read from a published file: recognised, renamed to ours, and where it came from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from purify_engine.config import ClassifierConfig, ScheduleConfig, UNetConfig, require
from purify_engine.models.checkpoints import classifier, registry
from purify_engine.models.checkpoints.layout import Given, Layout, Tensors, require_floats, shapes_of, translate
from purify_engine.models.checkpoints.reading import Opened, forms
from purify_engine.models.checkpoints.registry import fitting, named, recognised
from purify_engine.models.unet import UNet

Kind = Literal["unet", "classifier"]

CHUNK = 1 << 20  # bytes that are hashed at once


class Published(NamedTuple):
    """A network of a published file under our names. Its tensors may be mapped from the file: they are copied where stored."""

    layout: str
    config: UNetConfig | ClassifierConfig
    weights: dict[str, Tensor]
    schedule: ScheduleConfig  # that it was trained on; of a U-Net
    says: tuple[str, ...]  # where the weights lay in the file, and what of the configuration they do not tell
    sampling: Given = MappingProxyType({})  # fields of PurifierConfig, as what lies beside the weights says them


def read_unet(opened: Opened, *, given: Given | None = None, layout: str | None = None) -> Published:
    """The U-Net that `opened` holds. ValueError, in one line that names the file, where it holds none that is known."""
    source, given = str(opened.files[0]), given or {}
    asked = named(registry.UNETS, layout)
    part, tensors = _fitting(opened, asked, given) or next(forms(opened.content), ("", {}))
    shapes, name = shapes_of(tensors), opened.files[0].stem
    fit = recognised(shapes, asked, source, given=given, beside=opened.beside, layout=layout, name=name)
    assert isinstance(fit.config, UNetConfig)
    with torch.device("meta"):
        wanted = shapes_of(UNet(fit.config).state_dict())
    weights = translate(fit.layout, fit.config, tensors, wanted, source)
    require_floats(weights, source)
    schedule = fit.layout.schedule(fit.config, opened.beside) if fit.layout.schedule else ScheduleConfig()
    says = (f"the weights of {part!r}", *fit.says) if part else fit.says
    sampling = fit.layout.sampling(opened.beside) if fit.layout.sampling else {}
    return Published(fit.layout.name, fit.config, weights, schedule, says, sampling)


def read_classifier(opened: Opened, *, given: Given | None = None, layout: str | None = None) -> Published:
    """The classifier that `opened` holds; see `read_unet`."""
    source, name = str(opened.files[0]), opened.files[0].stem
    held = opened.content if isinstance(opened.content, Mapping) else {}
    read = classifier.read_classifier(held, name, source, given=given, layout=layout)
    require(not any(weight.is_meta for weight in read.weights.values()), source, "a file of tensors with values", "meta tensors")
    return Published(read.layout, read.config, read.weights, ScheduleConfig(), read.says)


def kind_of(opened: Opened, layout: str | None = None) -> Kind:
    """Whether `opened` holds a U-Net or a classifier; ValueError, in one line that names the file, where it holds neither."""
    known: tuple[Layout, ...] = (*registry.UNETS, *registry.CLASSIFIERS)
    if layout is not None:
        return "unet" if named(known, layout)[0] in registry.UNETS else "classifier"
    if _fitting(opened, named(registry.UNETS, None), {}):
        return "unet"
    if not classifier.is_classifier(opened.content):
        _, tensors = next(forms(opened.content), ("", {}))
        recognised(shapes_of(tensors), known, str(opened.files[0]))  # says what is there, and what is known
    return "classifier"


def sha256(path: Path) -> str:
    """Of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _fitting(opened: Opened, layouts: Sequence[Layout], given: Given) -> tuple[str, Tensors] | None:
    """The first part of the file that a layout fits, or says that it cannot be run: where it lay, and its tensors."""
    for asked, part, tensors in _candidates(opened, layouts):
        try:
            fits = fitting(shapes_of(tensors), asked, given=given, beside=opened.beside, name=opened.files[0].stem)
        except ValueError:
            return part, tensors
        if fits:
            return part, tensors
    return None


def _candidates(opened: Opened, layouts: Sequence[Layout]) -> Iterator[tuple[Sequence[Layout], str, Tensors]]:
    """Dictionaries of tensors, and the layouts they may have: the averages that a layout finds itself come first."""
    for known in layouts:
        try:
            tensors = known.unwrap(opened.content) if known.unwrap else None
        except ValueError as refusal:
            raise ValueError(f"{opened.files[0]}: {refusal}") from None
        if tensors is not None:
            yield [known], "ema", tensors
    for part, tensors in forms(opened.content):
        yield layouts, part, tensors
