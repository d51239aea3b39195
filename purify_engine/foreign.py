"""How a library of others is imported: it, or one line that says which command installs it."""

from __future__ import annotations

import importlib
from typing import Any


def imported(module: str, library: str, extra: str) -> Any:
    """The module named `module`; ModuleNotFoundError, with the pip command of our `extra`, where `library` is not installed."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as missing:
        if missing.name is None or missing.name.split(".")[0] != module.split(".")[0]:
            raise  # something that the library needs: its own words say what
        command = f"pip install 'purify-engine[{extra}]'"
        raise ModuleNotFoundError(f"{library} is not installed: {command}", name=missing.name) from None
