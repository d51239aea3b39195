"""The pixels a side, where weights do not tell them: a published network's, or the user's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from purify_engine.config import UNetConfig
from purify_engine.models.checkpoints.layout import Given


def completed(config: UNetConfig, attends: Sequence[int], given: Given, published: Iterable[UNetConfig]) -> UNetConfig:
    """`config` at the image size that is given, or that of the published network it is; `attends` are the levels that attend.

    Whatever else is given stands in place of what was read. ValueError where no size is known.
    """
    sized = [(known, _at(config, known.image_size, attends)) for known in published]
    for known, found in sized:
        if replace(found, dropout=known.dropout) == known:
            return (
                replace(known, **given)
                if given.get("image_size") in (None, known.image_size)
                else _stated(config, attends, given)
            )
    return _stated(config, attends, given)


def _stated(config: UNetConfig, attends: Sequence[int], given: Given) -> UNetConfig:
    if given.get("image_size") is None:
        raise ValueError("image_size must be given for a network of no published size (weights do not tell it), got None")
    return replace(_at(config, given["image_size"], attends), **given)


def _at(config: UNetConfig, image_size: int, attends: Sequence[int]) -> UNetConfig:
    resolutions = tuple(image_size >> level for level in attends)
    return replace(config, image_size=image_size, attention_resolutions=resolutions)
