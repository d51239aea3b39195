"""docs/api.md, written from the source: every public name with its signature, its docstring and the docs of its fields.

    python -m bench api            write the page again
    python -m bench api --check    only say whether it is out of date; exit code 1 if it is
"""

from __future__ import annotations

import argparse
import ast
import re
import textwrap
from collections.abc import Iterator
from typing import NamedTuple

import purify_engine
from bench.core.run import ROOT
from bench.report.definitions import (
    Definition,
    decorators,
    docstring,
    fields,
    find,
    is_dataclass,
    members,
    modules,
    names_of_arguments,
    public,
    signature,
    tree,
)
from purify_engine.markdown import table

PAGE = ROOT / "docs" / "api.md"
IMPORT = "`from purify_engine import …`"
RAISED = re.compile(r"(?:^|(?<=[.)] ))(?=(?:Value|Type|Runtime|FileNotFound|Import|OS)Error\b)")  # "Raises" is left out there
RAISES = re.compile(r"(?<=[.)]) (?=Raises )")
INTEGRATIONS = "purify_engine.integrations"
FIRST = ("GuidedPurifier", "DefendedClassifier", "list_purifiers", "load_classifier")
CONFIGURATION = ("PurifierConfig", "GuidanceConfig", "ScheduleConfig")
OVERRIDDEN = ("extra_repr", "train")  # what PyTorch calls, not a user

HEADER = """# API

Written by `make api` from the signatures and docstrings of the source; edit them there. Images are float tensors [B, C, H, W] in
[0, 1] unless a line says otherwise. Errors are one line that names the argument, what is allowed and what was given: ValueError
for a value, TypeError for a type, FileNotFoundError for a name that leads nowhere.
"""


class Section(NamedTuple):
    """A heading, a line below it, and where the names below it come from."""

    title: str
    says: str
    names: tuple[tuple[str, str], ...]


def _of(module: str, *names: str) -> tuple[tuple[str, str], ...]:
    return tuple((module, name) for name in names)


def _integrations() -> tuple[tuple[str, str], ...]:
    """Everything public in the modules for other libraries."""
    return tuple((module, found.node.name) for module in modules(INTEGRATIONS) for found in public(module))


SECTIONS = (
    Section("Purifiers", f"{IMPORT}.", _of("purify_engine", *FIRST)),
    Section(
        "How to purify",
        f"{IMPORT}. Immutable; every field is an argument here, an option of the command line, and a key of `config.json`. "
        "An impossible value is refused.",
        _of("purify_engine", *CONFIGURATION),
    ),
    Section(
        "Networks",
        f"{IMPORT}; the last six from `purify_engine.models`, `purify_engine.config` and `purify_engine.models.own`.",
        _of("purify_engine", *(name for name in purify_engine.__all__ if name not in ("__version__", *FIRST, *CONFIGURATION)))
        + _of("purify_engine.models", "from_diffusers", "load_safetensors", "save_safetensors")
        + _of("purify_engine.config", "OwnDenoiserConfig")
        + _of("purify_engine.models.own", "DenoisingNetwork", "GuideNetwork"),
    ),
    Section("In libraries of others", "[integrations.md](integrations.md) has an example of each.", _integrations()),
    Section(
        "Files and datasets",
        "`from purify_engine.data import …`: what `purify-engine purify` is made of.",
        _of("purify_engine.data", "purify_dataset", "PurificationSummary", "open_source", "open_sink", "ImageShape"),
    ),
    Section(
        "Attacks",
        "`purify-engine evaluate` runs them all; [threat_model.md](threat_model.md) says what is measured.",
        _of("purify_engine.evaluation.attacks", "attack")
        + _of("purify_engine.evaluation.defences", "Defence")
        + _of("purify_engine.config", "AttackConfig")
        + _of("purify_engine.evaluation.self_test", "gradient_self_test")
        + _of("purify_engine.evaluation.row_self_test", "row_self_test", "RowTest"),
    ),
    Section(
        "Which kernels run",
        "`from purify_engine import ops`.",
        _of("purify_engine.ops", "backend", "capability", "through_dispatcher"),
    ),
)


def page() -> str:
    """The whole page."""
    parts = [HEADER, "## Shapes\n", shapes()]
    for section in SECTIONS:
        parts += [f"## {section.title}\n", f"{section.says}\n"]
        for module, name in section.names:
            parts.append("\n".join(entry(find(module, name), module)))
    return "\n".join(parts)


def shapes() -> str:
    """What the names of tensors mean, as types.py spells them out."""
    named = [node for node in ast.walk(tree("purify_engine.types")) if isinstance(node, ast.Assign)]
    rows = []
    for node in named:
        if isinstance(node.value, ast.Subscript) and isinstance(node.value.slice, ast.Tuple):
            name, numbers, dims = node.targets[0], node.value.value, ast.literal_eval(node.value.slice.elts[1])
            rows.append((f"`{ast.unparse(name)}`", ast.unparse(numbers).lower(), f"[{', '.join(dims.split())}]"))
    legend = (ast.get_docstring(tree("purify_engine.types")) or "").partition(". ")[2]
    return f"{legend}\n\n{table(('name', 'numbers', 'shape'), rows, left=(0, 1, 2))}\n"


def entry(found: Definition, module: str) -> Iterator[str]:
    """One name: heading, signature, docstring, and below a class its fields and methods."""
    yield f"### {found.node.name}\n"
    if module.count(".") > 1:
        yield f"In `{module}`.\n"
    if not is_dataclass(found):
        yield fenced(signature(found))
    yield prose(docstring(found.node), names_of_arguments(found))
    if isinstance(found.node, ast.ClassDef):
        if is_dataclass(found):
            yield fields_table(found)
        for member in members(found):
            if member.node.name not in OVERRIDDEN:
                yield from method(member, found.node.name)


def method(found: Definition, owner: str) -> Iterator[str]:
    """One method or property of a class."""
    assert isinstance(found.node, ast.FunctionDef)
    marks = decorators(found.node)
    yield f"#### {owner}.{found.node.name}\n"
    called = signature(found)
    if "property" in marks:
        called = called.replace("()", "", 1)
    made = found.node.args.args[0].annotation if found.node.args.args else None
    if "classmethod" in marks and isinstance(made, ast.Subscript):  # cls: type[T], which gives a T
        called = called.replace(f"-> {ast.unparse(made.slice)}", f"-> {owner}")
    yield fenced(f"@classmethod\n{called}" if "classmethod" in marks else called)
    yield prose(docstring(found.node), names_of_arguments(found))


def fields_table(found: Definition) -> str:
    """The fields of a dataclass."""
    code = "`{}`".format
    rows = [(code(each.name), code(each.kind), each.default and code(each.default), escaped(each.says)) for each in fields(found)]
    return table(("field", "values", "default", "says"), rows, left=(0, 1, 2, 3)) + "\n"


def fenced(code: str) -> str:
    return f"```python\n{code}\n```\n"


def prose(text: str, arguments: set[str]) -> str:
    """A docstring as Markdown: paragraphs, a bullet for every argument that it explains, and what it raises by itself."""
    parts = []
    for paragraph in text.split("\n\n"):
        if is_code(paragraph):
            parts.append(fenced(textwrap.dedent(paragraph)))
        else:
            said = RAISED.sub("Raises ", " ".join(paragraph.split()))
            parts += [f"{_paragraph(part, arguments)}\n" for part in RAISES.split(said)]
    return "\n".join(parts)


def is_code(paragraph: str) -> bool:
    """Whether it is Python that does something: an example."""
    try:
        statements = ast.parse(textwrap.dedent(paragraph)).body
    except SyntaxError:
        return False
    return any(isinstance(node, ast.Assign) or isinstance(getattr(node, "value", None), ast.Call) for node in statements)


def _paragraph(text: str, arguments: set[str]) -> str:
    """Explained arguments stand at the start of a sentence: `preset: how to purify. layout: of a checkpoint ...`.

    So do those that are called, `callback(step) sees ...`. Each becomes a bullet, up to the next.
    """
    name = "|".join(sorted(map(re.escape, arguments), key=len, reverse=True)) or "(?!)"
    explained = re.compile(rf"((?:{name})(?:, (?:{name}))*): |((?:{name})\([^)]*\)) ")
    chunks = [chunk.strip() for chunk in re.split(rf"(?:^|(?<=[.)] ))(?={explained.pattern})", text)[::3]]
    lines = []
    for chunk in filter(None, chunks):
        found = explained.match(chunk)
        if found is None:
            lines.append(escaped(chunk) + ("\n" if len(chunks) > 1 else ""))
            continue
        names = f"`{found[2]}`" if found[2] else ", ".join(f"`{each}`" for each in found[1].split(", ")) + ":"
        lines.append(f"- {names} {escaped(chunk[found.end() :])}")
    return "\n".join(lines)


def escaped(text: str) -> str:
    """Markdown that reads as the text does; what stands between backticks stays, and pages of docs/ become links."""
    parts = re.split(r"(`[^`]*`)", text)
    plain = [re.sub(r"([*<])", r"\\\1", part) if index % 2 == 0 else part for index, part in enumerate(parts)]
    return re.sub(r"(?<![\w/`])docs/(\w+\.md)", r"[\1](\1)", "".join(plain))


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser("python -m bench api", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the page is out of date")
    check = parser.parse_args(words).check
    written = page()
    if PAGE.exists() and PAGE.read_text(encoding="utf-8") == written:
        return 0
    print(f"{'out of date' if check else 'written'}: {PAGE.relative_to(ROOT)}")
    if not check:
        PAGE.write_text(written, encoding="utf-8")
    return int(check)
