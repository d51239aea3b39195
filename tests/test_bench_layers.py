"""The layers of bench/, read off the imports: they point down only, and nothing that is run is imported by another."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from bench.__main__ import COMMANDS, main

ROOT = Path(__file__).parent.parent
BENCH = ROOT / "bench"
FLOOR = {"core": 0, "opponents": 1, "report": 1, "subjects": 2, "tuning": 3, "runs": 3, "gpu": 3, "__main__": 4}


def sources() -> dict[str, Path]:
    """Every module of bench/ by its dotted name, packages left out: they hold a docstring and nothing else."""
    paths = (path for path in sorted(BENCH.rglob("*.py")) if path.name != "__init__.py")
    return {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in paths}


MODULES = sources()


def imported(name: str) -> set[str]:
    """Modules of bench/ that a module names, also inside of functions."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}:{node.lineno}: import by absolute name"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module or ""}
    return found & set(MODULES)


def layer(name: str) -> str:
    return name.split(".")[1]


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_down(name):
    floors = {other: FLOOR[layer(other)] for other in imported(name) if layer(other) != layer(name)}
    assert not [other for other, floor in floors.items() if floor >= FLOOR[layer(name)]]


def test_nothing_that_is_run_is_imported_by_another():
    run = {command.module for command in COMMANDS.values()}
    assert run <= set(MODULES)
    assert not [f"{name} imports {other}" for name in MODULES for other in imported(name) & run]


def test_every_module_of_the_upper_layers_can_be_run():
    upper = {name for name in MODULES if layer(name) in ("runs", "tuning", "gpu")}
    assert upper <= {command.module for command in COMMANDS.values()}


def test_no_module_is_there_for_nothing():
    used = {other for name in MODULES for other in imported(name)} | {command.module for command in COMMANDS.values()}
    assert set(MODULES) - used == {"bench.__main__"}


def test_packages_hold_no_code():
    for path in BENCH.rglob("__init__.py"):
        (only,) = ast.parse(path.read_text()).body
        assert isinstance(only, ast.Expr)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_says_how_to_use_it(name, capsys):
    with pytest.raises(SystemExit) as done:
        main([name, "--help"])
    assert done.value.code == 0 and capsys.readouterr().out.startswith(f"usage: python -m bench {name}")


@pytest.mark.parametrize(("words", "status"), [([], 2), (["nothing"], 2), (["--help"], 0)], ids=str)
def test_without_a_command_there_is_a_list(words, status, capsys):
    assert main(words) == status
    said = capsys.readouterr().out
    assert all(command.says in said for command in COMMANDS.values())


def test_the_list_needs_no_torch():
    words = [sys.executable, "-c", "import sys, bench.__main__; print('torch' in sys.modules)"]
    assert subprocess.run(words, capture_output=True, text=True, check=True, cwd=ROOT).stdout.strip() == "False"
