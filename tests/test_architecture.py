"""The floors of docs/design.md, read off the imports; every op's stops; the budgets. A reviewer need not look for these."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "purify_engine"

# Imports only point down. One floor holds several parts where they may know each other, or where they are siblings that may not.
FLOOR = {
    "types": 0, "config": 0, "reference": 0, "files": 0, "foreign": 0, "markdown": 0, "devices": 0, "pages": 0, "pace": 0,
    "ops": 1, "testing": 1,
    "models": 2,
    "engine": 3,
    "purifier": 4, "siblings": 4, "stored": 4, "tracing": 4, "images": 4, "noise": 4, "presets": 4,
    "weights": 4, "conversion": 4, "folders": 4, "saving": 4, "cache": 4, "defended": 4,
    "data": 5, "training": 5, "evaluation": 5, "benchmark": 5, "integrations": 5,
    "cli": 6,
}  # fmt: skip
SIBLINGS = ({"data", "training", "evaluation", "benchmark", "integrations"}, {"ops", "testing"})
TESTING_MAY_READ = {"types", "config", "files", "reference", "ops", "testing"}
FACADE = "purify_engine"  # `from purify_engine import __version__`: the package itself imports nothing

KERNELS = ROOT / "kernels"

FILE_LINES, FUNCTION_LINES, LINE_LENGTH = 300, 40, 130
KERNEL_FILE_LINES, KERNEL_LINES = 400, 90
BANNED_FILES = ("utils", "helpers", "misc", "common")


def sources(root: Path = PACKAGE) -> list[Path]:
    return sorted(path for path in root.rglob("*.py") if "__pycache__" not in path.parts)


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def imported(path: Path, *, at_import: bool = False) -> set[str]:
    """Modules of ours that a file names; with `at_import`, only those that importing it runs."""
    found: set[str] = set()
    for node in running(tree(path)) if at_import else ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.relative_to(ROOT)}:{node.lineno}: import by absolute name"
            found |= {submodule_or_self(node.module or "", alias.name) for alias in node.names}
    return {name for name in found if name.split(".")[0] == "purify_engine"}


def running(node: ast.AST):
    """What runs at import: neither bodies of functions nor `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or is_type_checking(child):
            continue
        yield child
        yield from running(child)


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def submodule_or_self(module: str, name: str) -> str:
    inner = ROOT.joinpath(*module.split("."), name)
    return f"{module}.{name}" if inner.is_dir() or inner.with_suffix(".py").exists() else module


def part(module: str) -> str | None:
    """`purify_engine.ops.noise` -> `ops`; None for the package itself and for the compiled extension."""
    parts = module.split(".")
    return None if len(parts) == 1 or parts[1].startswith("_") else parts[1]


def uses() -> list[tuple[str, str, str]]:
    """(file, its part, the part it imports) over the whole package."""
    pairs = [(path, target) for path in sources() for target in imported(path)]
    rows = [(str(path.relative_to(ROOT)), part(module_name(path)), part(target)) for path, target in pairs]
    return [(file, own, other) for file, own, other in rows if own is not None and other is not None]


def test_every_module_has_a_floor():
    assert {part(module_name(path)) for path in sources()} - {None} <= set(FLOOR)


def test_imports_point_down():
    assert not [f"{file}: {own} imports {other}" for file, own, other in uses() if FLOOR[other] > FLOOR[own]]


def test_the_private_modules_of_the_ops_stay_private():
    """`purify_engine.ops` exports what the floors above need: how the ops are made may change beneath them."""
    above = [path for path in sources() + sources(ROOT / "bench") if PACKAGE / "ops" not in path.parents]
    named = {(str(path.relative_to(ROOT)), module) for path in above for module in imported(path)}
    assert not [(file, module) for file, module in named if module.startswith("purify_engine.ops") and "._" in module]


def test_siblings_do_not_import_one_another():
    crossing = [use for use in uses() if use[1] != use[2] and any({use[1], use[2]} <= family for family in SIBLINGS)]
    allowed = {("testing", "ops")}  # the yardstick compares ops with the reference
    assert not [use for use in crossing if use[1:] not in allowed]


def test_testing_stands_on_the_lowest_floors_only():
    assert not [use for use in uses() if use[1] == "testing" and use[2] not in TESTING_MAY_READ]


def test_nothing_imports_the_package_that_only_forwards():
    imports = [node for path in sources() for node in ast.walk(tree(path)) if is_facade_import(node)]
    parts_named = {alias.name for node in imports for alias in node.names} & set(FLOOR)
    assert {alias.name for node in imports for alias in node.names} <= {"__version__", "_C"} | parts_named


def is_facade_import(node: ast.AST) -> bool:
    return isinstance(node, ast.ImportFrom) and node.module == FACADE


def test_no_circles():
    graph = {module_name(path): imported(path, at_import=True) & modules() for path in sources()}
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join((*trail[trail.index(module) :], module))
        if module not in done:
            for target in sorted(graph[module] - {FACADE, module}):
                visit(target, (*trail, module))
            done.add(module)

    for module in graph:
        visit(module, ())


@cache
def modules() -> set[str]:
    return {module_name(path) for path in sources()}


def test_names_say_what_a_module_holds():
    assert not [path for path in sources() if path.stem in BANNED_FILES]
    classes = [node.name for path in sources() for node in ast.walk(tree(path)) if isinstance(node, ast.ClassDef)]
    assert not [name for name in classes if name.endswith(("Manager", "Helper", "Utils"))]


def test_tests_mirror_the_package():
    parts = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name not in ("weights", "__pycache__")}
    assert {path.name for path in (ROOT / "tests").iterdir() if path.is_dir() and path.name != "__pycache__"} <= parts | {"soak"}


@pytest.mark.parametrize("path", sources() + sources(ROOT / "bench"), ids=lambda path: str(path.relative_to(ROOT)))
def test_file_keeps_its_budget(path):
    lines = path.read_text().splitlines()
    assert len(lines) <= FILE_LINES
    assert not [number for number, line in enumerate(lines, 1) if len(line) > LINE_LENGTH]
    functions = [node for node in ast.walk(tree(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    assert not {node.name: length for node in functions if (length := body_lines(node)) > FUNCTION_LINES}


@pytest.mark.parametrize("path", sorted(KERNELS.glob("*.py")), ids=lambda path: f"kernels/{path.name}")
def test_kernels_know_nothing_of_ours_and_keep_their_budget(path):
    assert ast.get_docstring(tree(path))
    nodes = list(ast.walk(tree(path)))
    named = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    named |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom) and node.level == 0}
    ours = {name for name in named if name.split(".")[0] not in ("torch", "triton", *sys.stdlib_module_names)}
    assert not ours, "torch, Triton, the standard library, and siblings by relative import"
    assert "autotune" not in path.read_text().replace("autotuned", ""), "block sizes stand in _tiles.py"
    lines = path.read_text().splitlines()
    assert len(lines) <= KERNEL_FILE_LINES
    assert not [number for number, line in enumerate(lines, 1) if len(line) > LINE_LENGTH]
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef)]
    assert not [f.name for f in functions if body_lines(f) > (KERNEL_LINES if f.decorator_list else FUNCTION_LINES)]


def body_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function's body without its docstring: the words that explain it are not held against it."""
    documented = ast.get_docstring(node) is not None
    body = node.body[1:] if documented else node.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_says_what_it_is_for(path):
    assert ast.get_docstring(tree(path))


def ops() -> list[str]:
    from purify_engine.ops import OPS

    return sorted(OPS)


@pytest.mark.parametrize("name", ops())
def test_op_has_all_its_stops(name):
    from purify_engine.ops import ENGINES, OPS, Launcher
    from purify_engine.testing.agreement import judge_of
    from purify_engine.testing.cases import cases

    op, stem = OPS[name], name.removesuffix("_backward").removesuffix("_normal")
    assert op.reference.__module__.startswith("purify_engine.reference"), "its specification"
    assert set(op.engines) == set(ENGINES), "a launcher or a reason for every engine"
    launchers = [engine for engine in op.engines.values() if isinstance(engine, Launcher)]
    assert all(isinstance(engine, Launcher) or len(engine.split()) > 3 for engine in op.engines.values()), "a sentence"
    assert all(judge_of(op, engine) for engine in ENGINES), "its yardstick"
    homes = {launcher.run.__module__ for launcher in launchers if launcher.run.__module__.startswith("purify_engine.ops.")}
    assert len(homes - {"purify_engine.ops._triton"}) <= 1, "its launchers stand in one file"
    written_for = {"relu_conv3x3": "conv3x3_winograd", "conv3x3": "conv3x3_winograd"}.get(stem, stem)
    files = list((ROOT / "csrc").glob(f"{written_for}*.cpp"))
    assert files or isinstance(op.engines["cpp"], str), "its C++, or why not"
    assert (ROOT / "tests" / "ops" / f"test_{stem}.py").exists(), "its proof"
    assert cases(name)[0].arguments(), "its cases in testing/cases.py"


def python(code: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment).stdout


@pytest.mark.parametrize("module", ["purify_engine", "purify_engine.config", "purify_engine.cli.run"])
def test_importing_needs_no_torch(module):
    assert python(f"import {module}, sys; print('torch' in sys.modules)").strip() == "False"


def test_every_public_name_resolves():
    code = "import purify_engine as p; [getattr(p, name) for name in p.__all__]; print(set(p.__all__) <= set(dir(p)))"
    assert python(code).strip() == "True"


def test_help_is_there_at_once():
    """Under 0.6 s on an idle machine; the least processor time of a few tries here, since this one may be busy."""
    seconds = []
    for _ in range(5):
        before = os.times()
        subprocess.run([sys.executable, "-m", "purify_engine", "--help"], check=True, capture_output=True, cwd=ROOT)
        after = os.times()
        seconds.append(after.children_user + after.children_system - before.children_user - before.children_system)
    assert min(seconds) < 0.6
