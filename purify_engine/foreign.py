"""How a library of others is imported: it, or one line that says which command installs it."""

from __future__ import annotations

import importlib
from typing import Any


class NotInstalledError(ModuleNotFoundError):
    """A library that what was asked for needs is missing: one line, with the command that installs it."""


def imported(module: str, library: str, extra: str | None = None, *, source: str = "") -> Any:
    """The module named `module`; NotInstalledError, with the pip command of our `extra`, where `library` is not installed.

    source: what pip installs it from, for a library that is on no package index.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as missing:
        if missing.name is None or missing.name.split(".")[0] != module.split(".")[0]:
            raise  # something that the library needs: its own words say what
        command = f"pip install {source}" if extra is None else f"pip install 'purify-engine[{extra}]'"
        raise NotInstalledError(f"{library} is not installed: {command}", name=missing.name) from None
