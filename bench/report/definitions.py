"""What the package's source says of its public names: signatures, docstrings, fields. It is read and never imported.

So no library that the package can work with is needed here.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple, TypeAlias

from bench.core.run import ROOT

Node: TypeAlias = ast.ClassDef | ast.FunctionDef


class Definition(NamedTuple):
    """A class or a function, and the module whose source defines it."""

    module: str
    node: Node


class Field(NamedTuple):
    """A field of a dataclass, as it is written; the default is empty where there is none."""

    name: str
    kind: str
    default: str
    says: str


def path_of(module: str) -> Path:
    """The file of a module or package."""
    base = ROOT.joinpath(*module.split("."))
    return base / "__init__.py" if base.is_dir() else base.with_suffix(".py")


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(path_of(module).read_text(encoding="utf-8"))


def find(module: str, name: str) -> Definition:
    """The class or function that `module` calls `name`, wherever it is defined. LookupError where there is none."""
    for node in ast.walk(tree(module)):
        if isinstance(node, Node) and node.name == name:
            return Definition(module, node)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("purify_engine"):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return find(node.module, alias.name)
    raise LookupError(f"{module} has no class or function {name!r}")


def public(module: str) -> list[Definition]:
    """The classes and functions that a module defines for others, in the order of its source."""
    return [Definition(module, node) for node in tree(module).body if isinstance(node, Node) and node.name[0] != "_"]


def modules(package: str) -> list[str]:
    """The modules of a package that others import from, by name."""
    paths = sorted(path_of(package).parent.glob("*.py"))
    return [f"{package}.{path.stem}" for path in paths if not path.stem.startswith("_")]


def docstring(node: ast.AST) -> str:
    """The docstring of a class or function; empty where there is none."""
    assert isinstance(node, Node)
    return ast.get_docstring(node) or ""


def members(found: Definition) -> Iterator[Definition]:
    """The documented methods and properties of a class and of its bases in the package, each once; __call__ is one."""
    seen = set[str]()
    for module, node in lineage(found):
        for member in node.body:
            named = isinstance(member, ast.FunctionDef) and (member.name[0] != "_" or member.name == "__call__")
            if named and member.name not in seen and docstring(member):
                seen.add(member.name)
                yield Definition(module, member)


def lineage(found: Definition) -> Iterator[Definition]:
    """A class, then its bases in the package."""
    assert isinstance(found.node, ast.ClassDef)
    yield found
    for base in found.node.bases:
        if isinstance(base, ast.Name):
            try:
                above = find(found.module, base.id)
            except LookupError:
                continue
            yield from lineage(above)


def is_dataclass(found: Definition) -> bool:
    return any("dataclass" in ast.unparse(decorator) for decorator in found.node.decorator_list)


def decorators(node: ast.FunctionDef) -> set[str]:
    return {ast.unparse(decorator) for decorator in node.decorator_list}


def fields(found: Definition) -> list[Field]:
    """The fields of a dataclass, with the strings that stand below them."""
    body = found.node.body
    rows = []
    for node, below in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            is_text = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) and isinstance(below.value.value, str)
            says = " ".join(below.value.value.split()) if is_text else ""  # type: ignore[union-attr]
            rows.append(Field(node.target.id, kind(found.module, node.annotation), _default(node.value), says))
    return rows


def _default(value: ast.expr | None) -> str:
    if isinstance(value, ast.Call) and ast.unparse(value.func).endswith("field"):
        said = {keyword.arg: ast.unparse(keyword.value) for keyword in value.keywords}
        return said["default"] if "default" in said else f"{said['default_factory']}()"
    return _quoted(ast.unparse(value)) if value else ""


def signature(found: Definition) -> str:
    """How a class is made or a function called, in Python's words, one argument a line where one line would be long."""
    node, name = found.node, found.node.name
    if isinstance(node, ast.ClassDef):
        made = next((each for each in node.body if isinstance(each, ast.FunctionDef) and each.name == "__init__"), None)
        if made is None:
            return f"{name}()"
        return _call(found.module, name, made, bound=True, gives="")
    is_bound = bool(node.args.args) and node.args.args[0].arg in ("self", "cls")
    gives = kind(found.module, node.returns) if node.returns else "None"
    if "contextmanager" in decorators(node):
        return f"with {_call(found.module, name, node, bound=is_bound, gives=':')}"
    return _call(found.module, name, node, bound=is_bound, gives="" if gives == "None" else f" -> {gives}")


def _call(module: str, name: str, node: ast.FunctionDef, *, bound: bool, gives: str) -> str:
    arguments = list(_arguments(module, node.args))[1 if bound else 0 :]
    line = f"{name}({', '.join(arguments)}){gives}"
    if len(line) <= 100:
        return line
    return "\n".join([f"{name}(", *(f"    {argument}," for argument in arguments), f"){gives}"])


def _arguments(module: str, given: ast.arguments) -> Iterator[str]:
    """Each argument as written, and the marks between them."""
    positional = [*given.posonlyargs, *given.args]
    defaults = [None] * (len(positional) - len(given.defaults)) + list(given.defaults)
    for place, (argument, default) in enumerate(zip(positional, defaults, strict=True), 1):
        yield _argument(module, argument, default)
        if place == len(given.posonlyargs):
            yield "/"
    if given.vararg:
        yield f"*{_argument(module, given.vararg, None)}"
    elif given.kwonlyargs:
        yield "*"
    for argument, default in zip(given.kwonlyargs, given.kw_defaults, strict=True):
        yield _argument(module, argument, default)
    if given.kwarg:
        yield f"**{_argument(module, given.kwarg, None)}"


def _argument(module: str, argument: ast.arg, default: ast.expr | None) -> str:
    named = f"{argument.arg}: {kind(module, argument.annotation)}" if argument.annotation else argument.arg
    equals = " = " if argument.annotation else "="
    return named if default is None else f"{named}{equals}{_quoted(ast.unparse(default))}"


def names_of_arguments(found: Definition) -> set[str]:
    """The names that a docstring may explain: arguments of a function, of making an object, of calling it; fields."""
    if isinstance(found.node, ast.FunctionDef):
        return _names(found.node.args)
    called = [each for each in found.node.body if isinstance(each, ast.FunctionDef) and each.name in ("__init__", "__call__")]
    return set().union(*(_names(each.args) for each in called), (field.name for field in fields(found)))


def _names(given: ast.arguments) -> set[str]:
    listed = (*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg)
    return {argument.arg for argument in listed if argument} - {"self", "cls"}


def kind(module: str, annotation: ast.expr) -> str:
    """A type as it is written, names of choices replaced by the choices."""
    return _quoted(ast.unparse(_Choices(module).visit(ast.parse(ast.unparse(annotation), mode="eval")).body))


def _quoted(code: str) -> str:
    """Strings in the quotes that the source has them in; `ast` writes the others."""
    return code if '"' in code else code.replace("'", '"')


class _Choices(ast.NodeTransformer):
    """Writes out the names that stand for a `Literal`."""

    def __init__(self, module: str) -> None:
        self.module = module

    def visit_Name(self, node: ast.Name) -> ast.expr:  # noqa: N802 (as ast calls it)
        return choices(self.module, node.id) or node

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:  # noqa: N802
        if ast.unparse(node.value) == "Literal":
            return _either(node.slice)
        self.generic_visit(node)
        return node


@cache
def choices(module: str, name: str) -> ast.expr | None:
    """`"a" | "b"` for a name that `module` gives to `Literal["a", "b"]`, or imports from one of ours; None for another name."""
    for node in tree(module).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name and isinstance(node.value, ast.Subscript):
            return _either(node.value.slice) if ast.unparse(node.value.value) == "Literal" else None
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("purify_engine"):
            for alias in node.names:
                if (alias.asname or alias.name) == name and path_of(node.module or "").exists():
                    return choices(node.module or "", alias.name)
    return None


def _either(listed: ast.expr) -> ast.expr:
    values = listed.elts if isinstance(listed, ast.Tuple) else [listed]
    joined = values[0]
    for value in values[1:]:
        joined = ast.BinOp(joined, ast.BitOr(), value)
    return joined
