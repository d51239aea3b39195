"""Configurations as plain data, for JSON and back."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar, get_type_hints

from purify_engine.config.checks import require

SCHEMA_VERSION = 1

ConfigT = TypeVar("ConfigT")


def to_dict(config: Any) -> dict[str, Any]:
    """The JSON form of any configuration."""
    return dataclasses.asdict(config)


def from_dict(cls: type[ConfigT], values: dict[str, Any]) -> ConfigT:
    """The configuration of class `cls` from its JSON form; an unknown key is refused by name."""
    require(isinstance(values, dict), cls.__name__, "given as an object of its fields", values)
    kinds = get_type_hints(cls)
    unknown = sorted(set(values) - set(kinds))
    require(not unknown, cls.__name__, f"given only {', '.join(kinds)}", ", ".join(unknown))
    return cls(**{name: _restored(kinds[name], value) for name, value in values.items()})


def _restored(kind: Any, value: Any) -> Any:
    if dataclasses.is_dataclass(kind):
        return from_dict(kind, value)  # type: ignore[arg-type]
    return tuple(value) if isinstance(value, list) else value
