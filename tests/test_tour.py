"""docs/tour.ipynb: whole, run from top to bottom without an error, small, and written against the package as it is.

`make notebook` runs it; this only looks at it, and needs no Jupyter.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import importlib
import inspect
import json
import re
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from bench.report import tour
from purify_engine import GuidedPurifier, PurifierConfig
from purify_engine.defended import DefendedClassifier

NOTEBOOK = json.loads(tour.NOTEBOOK.read_text(encoding="utf-8"))
CODE = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
# What calls give that cells go on with: by the name of what is called.
GIVES = {"from_pretrained": GuidedPurifier, "configured": GuidedPurifier, "twin": GuidedPurifier, "defend": DefendedClassifier}
OF_AN_OBJECT = {"config", "denoiser", "guide", "purifier", "classifier"}  # set when it is made


class Made:
    """A value of a class: what a cell holds in a variable."""

    def __init__(self, kind: type) -> None:
        self.kind = kind


def test_it_was_run_from_top_to_bottom_without_an_error():
    assert [cell["execution_count"] for cell in CODE] == list(range(1, len(CODE) + 1))
    for cell in CODE:
        assert cell["outputs"] and {output["output_type"] for output in cell["outputs"]} <= {"stream", "execute_result"}
        assert all(output.get("name") != "stderr" for output in cell["outputs"])  # no warning either


def test_it_is_small_and_nothing_of_a_machine_is_in_it():
    assert tour.NOTEBOOK.stat().st_size < 300_000
    assert tour.bare(NOTEBOOK) == NOTEBOOK
    pictures = [output for cell in CODE for output in cell["outputs"] if "image/png" in output.get("data", {})]
    assert len(pictures) >= 3


def test_outputs_are_kept_in_one_form_however_they_arrive():
    printed = [{"output_type": "stream", "name": "stdout", "text": text} for text in ("a\n", "b\n")]
    picture = {"output_type": "execute_result", "data": {"image/png": "p", "image/jpeg": "j", "text/plain": "<Image>"}}
    whole = {"output_type": "stream", "name": "stdout", "text": "a\nb\n"}
    assert tour.outputs([*printed, picture]) == [whole, {**picture, "data": {"image/png": "p", "text/plain": "<Image>"}}]


def test_its_links_lead_somewhere():
    text = "\n".join("".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "markdown")
    links = [target for target in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in target]
    assert len(links) > 2 and all((tour.NOTEBOOK.parent / target).is_file() for target in links), links


def test_its_cells_name_what_there_is():
    named = list(names_used("\n".join("".join(cell["source"]) for cell in CODE)))
    assert not [line for line in named if not line.endswith(" is there")]
    assert {"GuidedPurifier.twin is there", "GuidedPurifier(num_draws=) is there", "configured(gradient=) is there"} <= set(named)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("from purify_engine import Purifier", "purify_engine.Purifier"),
        ("purifier.twins('attack')", "GuidedPurifier.twins"),
        ("GuidedPurifier.from_pretrained('digits', dtypes=1)", "from_pretrained(dtypes=)"),
        ("purifier.configured(sede=0)", "configured(sede=)"),
        ("purifier(images, id=ids)", "GuidedPurifier(id=)"),
        ("purifier.configured(seed=0).defend(c, votes=1)", "defend(votes=)"),
    ],
)
def test_a_name_that_is_not_there_is_noticed(wrong, said):
    setting = "from purify_engine import GuidedPurifier\npurifier = GuidedPurifier.from_pretrained('digits')\n"
    assert f"{said} is missing" in names_used(setting + wrong)


def names_used(source: str) -> Iterator[str]:
    """Every name of ours and of the imported modules that the source uses, and whether it is there."""
    known: dict[str, Any] = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            known |= {alias.asname or alias.name: importlib.import_module(alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            home = importlib.import_module(node.module or "")
            for alias in node.names:
                with contextlib.suppress(ImportError):  # a module of a package, which is its attribute from then on
                    importlib.import_module(f"{node.module}.{alias.name}")
                yield verdict(f"{node.module}.{alias.name}", hasattr(home, alias.name))
                known[alias.asname or alias.name] = getattr(home, alias.name, None)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assign):
            targets = node.targets[0].elts if isinstance(node.targets[0], ast.Tuple) else node.targets
            values = node.value.elts if isinstance(node.value, ast.Tuple) else [node.value]
            known |= {ast.unparse(to): value for to, given in zip(targets, values, strict=False) if (value := seen(given, known))}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            yield from attribute(node, known)
        elif isinstance(node, ast.Call):
            yield from keywords(node, known)


def verdict(name: str, is_there: bool) -> str:
    return f"{name} is {'there' if is_there else 'missing'}"


def seen(node: ast.expr, known: dict[str, Any]) -> Any:
    """The module, class, function or `Made` that an expression is; None for whatever else."""
    if isinstance(node, ast.Name):
        return known.get(node.id)
    if isinstance(node, ast.Attribute):
        home = seen(node.value, known)
        return getattr(home.kind if isinstance(home, Made) else home, node.attr, None)
    if isinstance(node, ast.Call):
        kind = GIVES.get(getattr(node.func, "attr", ""))
        return Made(kind) if kind and seen(node.func, known) else None
    return None


def attribute(node: ast.Attribute, known: dict[str, Any]) -> Iterator[str]:
    home = seen(node.value, known)
    if isinstance(home, Made):
        yield verdict(f"{home.kind.__name__}.{node.attr}", hasattr(home.kind, node.attr) or node.attr in OF_AN_OBJECT)
    elif isinstance(home, (ModuleType, type)):
        yield verdict(f"{home.__name__}.{node.attr}", hasattr(home, node.attr))


def keywords(node: ast.Call, known: dict[str, Any]) -> Iterator[str]:
    called = seen(node.func, known)
    if isinstance(called, Made):
        name, taken = called.kind.__name__, set(inspect.signature(called.kind.forward).parameters)  # type: ignore[attr-defined]
    elif getattr(called, "__module__", "").startswith("purify_engine"):
        name, taken = called.__name__, set(inspect.signature(called).parameters)
    else:
        return
    if name == "configured":
        taken = {field.name for field in dataclasses.fields(PurifierConfig)}
    yield from (verdict(f"{name}({each.arg}=)", each.arg in taken) for each in node.keywords)
