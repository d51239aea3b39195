"""Configurations as plain data, for JSON and back."""

from __future__ import annotations

import dataclasses
import types
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from purify_engine.config.checks import require

SCHEMA_VERSION = 1
UNIONS = (Union, types.UnionType)
WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", type(None): "null"}

ConfigT = TypeVar("ConfigT")


def to_dict(config: Any) -> dict[str, Any]:
    """The JSON form of any configuration."""
    return dataclasses.asdict(config)


def from_dict(cls: type[ConfigT], values: dict[str, Any]) -> ConfigT:
    """The configuration of class `cls` from its JSON form; an unknown key, or a value of another type, is refused by name."""
    require(isinstance(values, dict), cls.__name__, "given as an object of its fields", values)
    kinds = get_type_hints(cls)
    unknown = sorted(set(values) - set(kinds))
    require(not unknown, cls.__name__, f"given only {', '.join(kinds)}", ", ".join(unknown))
    return cls(**{name: _restored(f"{cls.__name__}.{name}", kinds[name], value) for name, value in values.items()})


def _restored(name: str, kind: Any, value: Any) -> Any:
    if dataclasses.is_dataclass(kind):
        return from_dict(kind, value)  # type: ignore[arg-type]
    held = tuple(value) if isinstance(value, list) else value
    require(_fits(kind, held), name, _in_words(kind), value)
    return held


def _fits(kind: Any, value: Any) -> bool:
    """Whether a value read from JSON is of the type `kind`; a whole number is a number, but true and false are none."""
    inner = get_args(kind)
    if get_origin(kind) in UNIONS:
        return any(_fits(one, value) for one in inner)
    if get_origin(kind) is Literal:
        return value in inner
    if get_origin(kind) is tuple:
        kinds = inner[:1] * len(value) if isinstance(value, tuple) and inner[1:] == (...,) else inner
        return isinstance(value, tuple) and len(value) == len(kinds) and all(map(_fits, kinds, value))
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, int | float if kind is float else kind)


def _in_words(kind: Any) -> str:
    inner = get_args(kind)
    if get_origin(kind) in UNIONS:
        return " or ".join(map(_in_words, inner))
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, inner))}"
    if get_origin(kind) is tuple:
        count = "" if inner[1:] == (...,) else f" of {len(inner)}"
        return f"a list{count}, each {_in_words(inner[0])}"
    return WORDS[kind]
