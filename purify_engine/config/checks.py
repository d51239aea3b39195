"""The one sentence that refuses a value."""

from __future__ import annotations

from typing import Any


def require(ok: bool, argument: str, allowed: str, value: object) -> None:
    """Refuse `value` with the one sentence every error of ours has: argument, allowed range, value."""
    if not ok:
        raise ValueError(f"{argument} must be {allowed}, got {value!r}")


def one_of(argument: str, value: object, literal: Any) -> None:
    """Refuse a value that is not among the literal's."""
    require(value in literal.__args__, argument, f"one of {', '.join(map(str, literal.__args__))}", value)
