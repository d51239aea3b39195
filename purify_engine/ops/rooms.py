"""Entering an engine room that is compiled: a missing extension is fine, a broken one is an error."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType


def enter(name: str, interface: int) -> ModuleType | None:
    """The extension `purify_engine.<name>`, or None where it was never built.

    ImportError where it does not load, or was built for other launchers than these, which know `interface`.
    """
    module = f"purify_engine.{name}"
    if importlib.util.find_spec(module) is None:
        return None
    repair = "rebuild it with `pip install -e .`, or delete the file to do without"
    try:
        extension = importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{module} is there but does not load ({error}); {repair}") from error
    if getattr(extension, "INTERFACE", None) != interface:
        raise ImportError(f"{module} was built for another version of purify_engine; {repair}")
    return extension
