"""The planted faults follow the code, and what plants them can tell a test that notices from one that does not."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

from mutation.planted import Fault, load_faults, named_tests, plant_all
from mutation.words import same_but_for_words

ROOT = Path(__file__).parent.parent
FAULTS = load_faults()


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_every_fault_can_be_planted_and_names_tests_that_exist(fault):
    mutant = fault.planted_in((ROOT / fault.file).read_text(encoding="utf-8"))
    if fault.file.endswith(".py"):
        ast.parse(mutant)
    assert fault.new != fault.old
    assert named_tests(fault, ROOT)


def test_every_part_of_the_code_has_faults():
    files = {fault.file for fault in FAULTS}
    folders = [path for path in (ROOT / "purify_engine").iterdir() if (path / "__init__.py").exists() and not path.is_symlink()]
    parts = {*(f"purify_engine/{path.name}" for path in folders), "csrc", "kernels", "bench"} - {"purify_engine/testing"}
    assert not [part for part in parts if not any(file.startswith(f"{part}/") for file in files)]


def test_a_fault_whose_text_is_gone_or_stands_twice_is_an_error():
    fault = Fault("f", "a.py", "", old="x", new="y", tests=())
    for source in ("", "x = x"):
        with pytest.raises(ValueError, match="must stand once in a.py, got [02] times"):
            fault.planted_in(source)


@pytest.fixture
def tree(tmp_path) -> Path:
    """A small tree under git: a module, a test that looks at half of it, and one that fails always."""
    (tmp_path / "purify_engine").mkdir()
    (tmp_path / "module.py").write_text("def double(x):\n    return 2 * x\n\n\ndef triple(x):\n    return 3 * x\n")
    (tmp_path / "test_module.py").write_text("import module\n\n\ndef test_double():\n    assert module.double(2) == 4\n")
    (tmp_path / "test_red.py").write_text("def test_red():\n    assert False\n")
    (tmp_path / "pyproject.toml").write_text(
        '[tool.pytest.ini_options]\nmarkers = ["slow", "system"]\naddopts = "--import-mode=importlib"\npythonpath = ["."]\n'
    )
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    return tmp_path


def test_a_noticed_fault_is_told_from_one_that_survives(tree, capsys):
    tests = ("test_module.py", "test_red.py")
    noticed = Fault("doubled", "module.py", "", "2 * x", "2 + x + 1", tests)
    survives = Fault("tripled", "module.py", "", "3 * x", "4 * x", tests)
    before = (tree / "module.py").read_text()
    assert plant_all(tree, [noticed, survives]) == [True, False]
    assert (tree / "module.py").read_text() == before
    said = capsys.readouterr().out
    assert "counts for nothing: test_red.py::test_red" in said
    assert "doubled: noticed by test_module.py::test_double" in said
    assert "tripled: SURVIVED" in said


@pytest.mark.parametrize(
    ("source", "mutant"),
    [
        ("require(x > 0, 'x', 'positive', x)", "require(x > 0, 'XXxXX', None, x)"),
        ("raise ValueError(f'{x} is wrong')", "raise ValueError(None)"),
        ("torch.arange(3, device=x.device)", "torch.arange(3, )"),
        ("x.to(y.device)", "x.to(None)"),
        ("zip(a, b, strict=True)", "zip(a, b, strict=False)"),
        ("cast(UNet, model)", "cast(None, model)"),
        ("def f(x: int) -> int:\n    '''Says.'''\n    return x", "def g(x: None):\n    return x"),
    ],
)
def test_words_devices_and_types_are_no_mutants(source, mutant):
    assert same_but_for_words(source, mutant)


@pytest.mark.parametrize(
    ("source", "mutant"),
    [
        ("require(x > 0, 'x', 'positive', x)", "require(x >= 0, 'x', 'positive', x)"),
        ("raise ValueError(x)", "raise TypeError(x)"),
        ("torch.arange(3, device=x.device)", "torch.arange(4, device=x.device)"),
        ("x.to(dtype)", "x.to(None)"),
        ("zip(a, b, strict=True)", "zip(a, None, strict=True)"),
        ("cast(UNet, model)", "cast(UNet, None)"),
        ("x = 'name'", "x = 'XXnameXX'"),
    ],
)
def test_whatever_else_differs_is_a_mutant(source, mutant):
    assert not same_but_for_words(source, mutant)


@pytest.mark.system
def test_a_sample_of_mutants_is_drawn_tested_and_kept(capsys):
    from mutation import sampled

    status = sampled.run(ROOT, "data", sample=3, seed=1)
    first = capsys.readouterr().out
    assert "testing 3 of" in first or "score of data" in first
    assert sampled.run(ROOT, "data", sample=3, seed=1) == status
    again = capsys.readouterr().out
    assert "testing" not in again, "what was tested is kept"
    noticed = re.search(r"score of data: (\d) of 3 mutants", again)
    assert noticed is not None
    assert status == (0 if noticed[1] == "3" else 1), "two of three are less than 80 %"
