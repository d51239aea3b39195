"""The pixels a side, where weights do not tell them: a published network's, or the user's."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

from purify_engine.config import UNetConfig
from purify_engine.models.checkpoints.layout import Given, Told, require_fields


class Sizeless(NamedTuple):
    """A network, all but the size of its images: the configuration at some size, and which of its levels attend."""

    config: UNetConfig
    attends: tuple[int, ...]

    def at(self, image_size: int) -> UNetConfig:
        """At this size."""
        resolutions = tuple(image_size >> level for level in self.attends)
        return replace(self.config, image_size=image_size, attention_resolutions=resolutions)

    def published(self, networks: Iterable[UNetConfig]) -> UNetConfig | None:
        """The one of `networks` that this is."""
        for known in networks:
            if replace(self.at(known.image_size), dropout=known.dropout) == known:
                return known
        return None

    def completed(self, given: Given, networks: Iterable[UNetConfig]) -> UNetConfig:
        """At the size that is given, or that of the published network it is; whatever else is given stands, too.

        ValueError where no size is known.
        """
        require_fields(given, UNetConfig)
        known = self.published(networks)
        if known is not None and given.get("image_size") in (None, known.image_size):
            return replace(known, **given)
        if given.get("image_size") is None:
            raise ValueError("image_size must be given for a network of no published size (weights do not tell it), got None")
        return replace(self.at(given["image_size"]), **given)


def told_size(network: Sizeless | None, networks: Iterable[UNetConfig]) -> list[Told]:
    """The size of the published network that this is."""
    known = None if network is None else network.published(networks)
    if known is None:
        return []
    size = f"{known.image_size}x{known.image_size}"
    return [Told({"image_size": known.image_size}, f"images of {size}, as the published network of these shapes has them")]
