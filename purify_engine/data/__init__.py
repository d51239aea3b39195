"""Data sets in and out: where images come from, where they go, and the offline run that purifies one into the other.

Names load on first use (PEP 562): nothing but what purifies needs torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from purify_engine.data.bundled import digits as digits
    from purify_engine.data.items import ImageShape as ImageShape
    from purify_engine.data.items import Item as Item
    from purify_engine.data.items import ItemError as ItemError
    from purify_engine.data.items import Outcome as Outcome
    from purify_engine.data.items import Part as Part
    from purify_engine.data.items import Sink as Sink
    from purify_engine.data.items import Skipped as Skipped
    from purify_engine.data.items import Source as Source
    from purify_engine.data.items import Written as Written
    from purify_engine.data.reading import read_all as read_all
    from purify_engine.data.reading import read_rows as read_rows
    from purify_engine.data.run import ItemFailure as ItemFailure
    from purify_engine.data.run import PurificationSummary as PurificationSummary
    from purify_engine.data.run import Stop as Stop
    from purify_engine.data.run import purify_dataset as purify_dataset
    from purify_engine.data.sinks import open_sink as open_sink
    from purify_engine.data.sources import open_source as open_source

_HOMES = {
    "ImageShape": "items",
    "Item": "items",
    "ItemError": "items",
    "ItemFailure": "run",
    "Outcome": "items",
    "Part": "items",
    "PurificationSummary": "run",
    "Sink": "items",
    "Skipped": "items",
    "Source": "items",
    "Stop": "run",
    "Written": "items",
    "digits": "bundled",
    "open_sink": "sinks",
    "open_source": "sources",
    "purify_dataset": "run",
    "read_all": "reading",
    "read_rows": "reading",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
