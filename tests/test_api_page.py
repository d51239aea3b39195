"""docs/api.md: it is what the source says, it has every public name, and every name on it is explained."""

from __future__ import annotations

import ast
import importlib
import inspect
import re

import pytest

import purify_engine
from bench.report import api
from bench.report.definitions import Definition, docstring, fields, find, is_dataclass, names_of_arguments, signature

NAMES = [pair for section in api.SECTIONS for pair in section.names]
IMPORTED = [pair for pair in NAMES if not pair[0].startswith(api.INTEGRATIONS)]  # the others need libraries that are not here
SOURCE = '''
class Door:
    """A door."""

    def __init__(self, width: int, /, *names: str, wood: Kind = 'oak', **more: Any) -> None: ...

    def opened(self, by: float = 0.5, then: Then = None) -> Door:
        """It, opened. by: how far, in [0, 1]. then(width) is called. Raises ValueError where it is locked (docs/math.md)."""

@contextmanager
def ajar(a_long_name_of_an_argument: tuple[int, ...], another: Literal["one", "two"], and_a_third: str | None = None): ...
'''


def test_the_page_is_what_the_source_says():
    assert api.PAGE.read_text(encoding="utf-8") == api.page(), "run `make api`"


def test_every_public_name_stands_on_it_once():
    headings = re.findall(r"^### (.+)$", api.PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert {*purify_engine.__all__} - {"__version__"} <= set(headings)
    assert headings == [find(module, name).node.name for module, name in NAMES] and len(headings) == len(set(headings))


@pytest.mark.parametrize(("module", "name"), NAMES, ids=[name for _, name in NAMES])
def test_every_name_and_every_field_is_explained(module, name):
    found = find(module, name)
    assert docstring(found.node)
    assert not is_dataclass(found) or not [field.name for field in fields(found) if not field.says]


@pytest.mark.parametrize(("module", "name"), IMPORTED, ids=[name for _, name in IMPORTED])
def test_signatures_are_those_of_python(module, name):
    """Names, order and kinds of the arguments; what Python makes of the source is another reading of it."""
    thing = getattr(importlib.import_module(module), name)
    found = find(module, name)
    expected = list(inspect.signature(thing).parameters.values())
    if is_dataclass(found):
        assert [field.name for field in fields(found)] == [parameter.name for parameter in expected]
        assert all(bool(field.default) == (parameter.default is not inspect.Parameter.empty) for field, parameter in
                   zip(fields(found), expected, strict=True))  # fmt: skip
        return
    written = signature(found).removeprefix("with ").removesuffix(":")
    made = ast.parse(f"def {written}: ...").body[0]
    assert isinstance(made, ast.FunctionDef)
    given = made.args
    assert [each.arg for each in (*given.posonlyargs, *given.args)] == [p.name for p in expected if p.kind in (0, 1)]
    assert [each.arg for each in given.kwonlyargs] == [p.name for p in expected if p.kind == inspect.Parameter.KEYWORD_ONLY]


def test_a_signature_is_written_as_it_is_called():
    door, ajar = (Definition("purify_engine.types", node) for node in ast.parse(SOURCE).body)
    assert signature(door) == 'Door(width: int, /, *names: str, wood: Kind = "oak", **more: Any)'
    assert signature(Definition(door.module, door.node.body[2])) == "opened(by: float = 0.5, then: Then = None) -> Door"
    lines = ["with ajar(", "    a_long_name_of_an_argument: tuple[int, ...],", '    another: "one" | "two",']
    assert signature(ajar).splitlines() == [*lines, "    and_a_third: str | None = None,", "):"]


def test_what_a_docstring_says_of_arguments_and_errors_stands_apart():
    door = ast.parse(SOURCE).body[0]
    opened = Definition("purify_engine.types", door.body[2])
    bullets = "- `by`: how far, in [0, 1].\n- `then(width)` is called.\n"
    said = f"It, opened.\n\n{bullets}\nRaises ValueError where it is locked ([math.md](math.md)).\n"
    assert api.prose(docstring(opened.node), names_of_arguments(opened)) == said
    assert api.prose("Done. TypeError where it is none.", set()) == "Done.\n\nRaises TypeError where it is none.\n"
    example = "Made so:\n\n    door = Door(3)\n    door.opened()"
    assert api.prose(example, set()) == "Made so:\n\n```python\ndoor = Door(3)\ndoor.opened()\n```\n"
    assert api.escaped("2**63 in `2**63`, <b>") == r"2\*\*63 in `2**63`, \<b>"
