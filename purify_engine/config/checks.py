"""The one sentence that refuses a value."""

from __future__ import annotations

from numbers import Integral
from typing import Any


def require(ok: bool, argument: str, allowed: str, value: object) -> None:
    """Refuse `value` with the one sentence every error of ours has: argument, allowed range, value."""
    if not ok:
        raise ValueError(f"{argument} must be {allowed}, got {value!r}")


def require_count(argument: str, value: object, least: int = 1) -> None:
    """Refuse what is no whole number, Python's or NumPy's, of `least` at least."""
    is_whole = isinstance(value, Integral) and not isinstance(value, bool)
    require(is_whole and value >= least, argument, f"a whole number, at least {least}", value)  # type: ignore[operator]


def one_of(argument: str, value: object, literal: Any) -> None:
    """Refuse a value that is not among the literal's."""
    require(value in literal.__args__, argument, f"one of {', '.join(map(str, literal.__args__))}", value)
