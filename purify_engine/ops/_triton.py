"""The kernels in Triton (`kernels/`), imported when the first of them is asked for."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from functools import cache
from typing import Any

from purify_engine.ops._registry import Declines, Launcher

_NOT_INSTALLED = "Triton is not installed; `pip install triton` brings it"


def triton(run: Callable[..., Any], declines: Declines | None = None) -> Launcher | str:
    """A launcher of kernels in Triton, where it is installed."""
    return _NOT_INSTALLED if importlib.util.find_spec("triton") is None else Launcher(run, declines)


@cache
def kernel(stem: str, name: str) -> Callable[..., Any]:
    """The host function `name` of `kernels/<stem>.py`, which is imported in the first call."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return getattr(_module(stem), name)(*args, **kwargs)

    return call


@cache  # asking Python's own table of modules takes as long as a small kernel
def _module(stem: str) -> Any:
    return importlib.import_module(f"purify_engine.kernels.{stem}")
