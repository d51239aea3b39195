"""What becomes of a part whose process died: it is done again, and where that dies, too, its items are tried one by one.

A process dies of a fault in a decoder, or of memory that another program took. The part that it worked on is done again in a
process of its own. An image that ends that process a second time is found by working on it alone; it fails, and no other does.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping
from typing import Protocol

from purify_engine.data.items import Part
from purify_engine.data.manifest import Record


class ProcessEndedError(RuntimeError):
    """The process that worked on something is gone, and said nothing."""


class Isolation(Protocol):
    """Another process, in which one thing is tried at a time. Both raise ProcessEndedError where it dies."""

    def whole(self, part: Part, withheld: Mapping[int, str]) -> Record:
        """Do `part` without the items of `withheld`, which fail for the reasons given."""
        ...

    def single(self, part: Part, id: int) -> None:
        """Purify one item, and write nothing."""
        ...


def redone(part: Part, isolation: Isolation) -> Record:
    """The record of a part whose process died once. ProcessEndedError where not even its failures can be written."""
    try:
        return isolation.whole(part, {})
    except ProcessEndedError:
        fatal = {id: reason for id in part.ids if (reason := _reason(part, id, isolation)) is not None}
    try:
        return isolation.whole(part, fatal)
    except ProcessEndedError as ended:
        return isolation.whole(part, dict.fromkeys(part.ids, f"{ended}, together with other images") | fatal)


def _reason(part: Part, id: int, isolation: Isolation) -> str | None:
    try:
        isolation.single(part, id)
    except ProcessEndedError as ended:
        return str(ended)
    return None


def ended_by(code: int | None) -> str:
    """Why an item fails whose process exited with `code`, negative for a signal."""
    if code is None or code >= 0:
        return f"ended its process (exit code {code})"
    try:
        return f"ended its process ({signal.Signals(-code).name})"
    except ValueError:  # a signal without a name
        return f"ended its process (signal {-code})"
