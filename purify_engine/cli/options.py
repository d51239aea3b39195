"""Options from the configuration dataclasses: one option a field, its help the comment beside the field, unset unless given.

An option that was not given must leave what a saved purifier or a default says, so each becomes `None | type` here, and only what
was given is put into the configuration.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from functools import cache
from typing import Annotated, Any, Optional, TypeVar, get_type_hints

from cyclopts import Parameter

ConfigT = TypeVar("ConfigT")

_CLASS = re.compile(r"^class (\w+)", re.MULTILINE)
_COMMENTED_FIELD = re.compile(r"^    (\w+): [^#\n]*  # (.*)$", re.MULTILINE)


def options_of(config: type, *, without: tuple[str, ...] = (), saved: bool = False) -> Any:
    """A dataclass of the same fields as `config`, all optional, nested configurations too.

    `saved`: the defaults are those of a saved model, so the help does not name the dataclass's own.
    """
    hints, comments = get_type_hints(config), field_comments(config)
    fields = []
    for field in dataclasses.fields(config):
        if field.name not in without:
            hint, default = hints[field.name], field.default
            kind: Any = options_of(hint, saved=saved) if isinstance(hint, type) and dataclasses.is_dataclass(hint) else hint
            silent = saved or default in (None, dataclasses.MISSING) or dataclasses.is_dataclass(default)
            said = comments.get(field.name, "") + ("" if silent else f" [default: {default}]")
            option = Annotated[Optional[kind], Parameter(help=said, negative_iterable=())]  # noqa: UP045  (`kind` is a value)
            fields.append((field.name, option, None))
    made = dataclasses.make_dataclass(f"{config.__name__}Options", fields, frozen=True, kw_only=True)
    made.__module__ = __name__  # where cyclopts resolves the annotations
    return made


def field_comments(config: type) -> dict[str, str]:
    """The trailing comment of every commented field, base classes first."""
    lineage = [cls for cls in reversed(config.__mro__) if dataclasses.is_dataclass(cls)]
    return {name: said for cls in lineage for name, said in _COMMENTED_FIELD.findall(_sources(cls.__module__)[cls.__name__])}


def given(options: Any) -> dict[str, Any]:
    """What was given on the command line or in the file, and nothing else."""
    if options is None:
        return {}
    found = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    values = {name: given(value) if dataclasses.is_dataclass(value) else value for name, value in found.items()}
    return {name: value for name, value in values.items() if value is not None and value != {}}


def with_options(config: ConfigT, options: Any) -> ConfigT:
    """`config` with what was given in place; ValueError where the values do not fit together."""
    return _replaced(config, given(options))


def _replaced(config: Any, values: dict[str, Any]) -> Any:
    nested = {name: _replaced(getattr(config, name), value) for name, value in values.items() if isinstance(value, dict)}
    return dataclasses.replace(config, **{**values, **nested})


@cache
def _sources(module: str) -> dict[str, str]:
    """Source text by class. `inspect.getsource` of a class would parse the whole module every time."""
    _, *parts = _CLASS.split(inspect.getsource(sys.modules[module]))
    return dict(zip(parts[::2], parts[1::2], strict=True))
