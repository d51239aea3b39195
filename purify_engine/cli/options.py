"""Options from the configuration dataclasses: one option a field, its help the docstring below the field, unset unless given.

An option that was not given must leave what a saved purifier or a default says, so each becomes `None | type` here, and only what
was given is put into the configuration.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, Optional, TypeVar, get_args, get_origin, get_type_hints

from cyclopts import Parameter
from docstring_parser import parse_from_object

ConfigT = TypeVar("ConfigT")


def options_of(
    config: Any, *, without: tuple[str, ...] = (), saved: bool = False, derived: Mapping[str, str] | None = None
) -> Any:
    """A dataclass of the same fields as `config`, all optional, nested configurations too.

    `config`: a dataclass, or one of its objects, whose values are then the defaults that the help names.
    `saved`: the defaults are those of a saved model, so the help does not name the dataclass's own. `derived`: what a field that
    is not given follows from, in words, in place of its default.
    """
    kind_of = config if isinstance(config, type) else type(config)
    hints, docstrings = get_type_hints(kind_of), field_docstrings(kind_of)
    fields = []
    for field in dataclasses.fields(kind_of):
        if field.name not in without:
            hint, default = hints[field.name], field.default if config is kind_of else getattr(config, field.name)
            kind: Any = options_of(hint, saved=saved) if isinstance(hint, type) and dataclasses.is_dataclass(hint) else hint
            words = (derived or {}).get(field.name, default)
            silent = saved or default in (None, dataclasses.MISSING) or dataclasses.is_dataclass(default)
            said = docstrings.get(field.name, "") + ("" if silent else f" [default: {words}]")
            how = Parameter(help=said, negative_iterable=(), consume_multiple=_is_tuple(kind))  # --timesteps 99 49 0
            option = Annotated[Optional[kind], how]  # noqa: UP045  (`kind` is a value)
            fields.append((field.name, option, None))
    made = dataclasses.make_dataclass(f"{kind_of.__name__}Options", fields, frozen=True, kw_only=True)
    made.__module__ = __name__  # where cyclopts resolves the annotations
    return made


def _is_tuple(kind: Any) -> bool:
    return get_origin(kind) is tuple or any(get_origin(part) is tuple for part in get_args(kind))


@cache
def field_docstrings(config: type) -> dict[str, str]:
    """What stands below every field, base classes first: read as cyclopts reads a class that it is given itself."""
    lineage = [cls for cls in reversed(config.__mro__) if dataclasses.is_dataclass(cls)]
    documented = [field for cls in lineage for field in parse_from_object(cls).params]
    return {field.arg_name: " ".join((field.description or "").split()) for field in documented}


def given(options: Any) -> dict[str, Any]:
    """What was given on the command line or in the file, and nothing else."""
    if options is None:
        return {}
    fields = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    values = {name: given(value) if dataclasses.is_dataclass(value) else value for name, value in fields.items()}
    return {name: value for name, value in values.items() if value is not None and value != {}}


def with_options(config: ConfigT, options: Any) -> ConfigT:
    """`config` with what was given in place; ValueError where the values do not fit together."""
    return _replaced(config, given(options))


def _replaced(config: Any, values: dict[str, Any]) -> Any:
    nested = {name: _replaced(getattr(config, name), value) for name, value in values.items() if isinstance(value, dict)}
    return dataclasses.replace(config, **{**values, **nested})
