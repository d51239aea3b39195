"""What a user installs: a whole source archive, a wheel built from it in isolation, and a package that works from there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
NOT_COPIED = shutil.ignore_patterns(".git", ".venv", "build", "dist", "*.so", "*.egg-info", "__pycache__", ".*_cache", "runs")


def run(*words: str | Path, cwd: Path, **environment: str) -> str:
    settings = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | environment
    done = subprocess.run([str(word) for word in words], cwd=cwd, env=settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    """The source archive of a clean copy of this tree."""
    folder = tmp_path_factory.mktemp("packaging")
    shutil.copytree(ROOT, folder / "tree", ignore=NOT_COPIED)
    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", folder, ".", cwd=folder / "tree")
    return next(folder.glob("*.tar.gz"))


@pytest.fixture(scope="module")
def installed(archive) -> Path:
    """The Python of an environment of its own that has the wheel, built in isolation, and sees this one's other packages."""
    folder = archive.parent
    constraints = str(ROOT / "constraints.txt")
    build = ("-m", "pip", "wheel", "--no-deps", "--wheel-dir", folder, archive)
    settings = {"PIP_CONSTRAINT": constraints, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    settings["PURIFY_ENGINE_CUDA"] = "0"  # compiling for GPUs takes a minute, and adds nothing to what is asked here
    run(sys.executable, *build, cwd=folder, **settings)
    run(sys.executable, "-m", "venv", "--without-pip", folder / "venv", cwd=folder)
    python = folder / "venv" / "bin" / "python"
    install = ("--python", python, "install", "--no-deps", "--no-index", next(folder.glob("*.whl")))
    run(sys.executable, "-m", "pip", *install, cwd=folder)
    own = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    (own / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def test_the_source_archive_has_everything_a_build_needs(archive):
    with tarfile.open(archive) as opened:
        names = {name.split("/", 1)[1] for name in opened.getnames() if "/" in name}
    patterns = ("csrc/**/*", "kernels/*.py", "purify_engine/weights/**/*", "purify_engine/**/*.j2")
    ours = [path for pattern in patterns for path in ROOT.glob(pattern) if path.is_file()]
    assert {path.relative_to(ROOT).as_posix() for path in ours} <= names
    assert {"setup.py", "pyproject.toml", "LICENSE", "constraints.txt", "purify_engine/py.typed"} <= names
    assert not [name for name in names if name.endswith((".so", ".pyc"))]


def test_the_wheel_is_used_and_not_the_checkout(installed, tmp_path):
    where = run(installed, "-c", "import purify_engine; print(purify_engine.__file__)", cwd=tmp_path)
    assert str(installed.parent.parent) in where


@pytest.mark.parametrize("order", ["purify_engine._C, torch", "torch, purify_engine._C"])
def test_the_extension_works_in_either_import_order(order, installed, tmp_path):
    code = f"""
import {order}
from purify_engine import ops
key, ids, step = torch.tensor(1), torch.arange(3), torch.tensor(0)
with ops.backend("cpp"):
    fast = ops.philox(key, ids, step, 64)
with ops.backend("reference"):
    print(torch.equal(fast, ops.philox(key, ids, step, 64)))
"""
    assert run(installed, "-c", code, cwd=tmp_path).strip() == "True"


def test_the_embedded_purifier_works_from_the_wheel(installed, tmp_path):
    code = """
import torch
from purify_engine import GuidedPurifier, list_purifiers, load_classifier
images = torch.rand(2, 1, 8, 8)
out = GuidedPurifier.from_pretrained("digits")(images)
print(list_purifiers(), load_classifier("digits")(out).shape, out.shape == images.shape)
"""
    assert run(installed, "-c", code, cwd=tmp_path).strip() == "['digits'] torch.Size([2, 10]) True"


def test_the_command_is_installed(installed, tmp_path):
    assert run(installed.parent / "purify-engine", "--version", cwd=tmp_path).strip()


def test_without_the_extension_everything_runs_on_the_reference(installed, tmp_path):
    code = """
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "purify_engine._C" else found(name, *rest)
import torch
from purify_engine import ops
print(ops.philox(torch.tensor(1), torch.arange(2), torch.tensor(0), 4).shape)
"""
    assert run(installed, "-c", code, cwd=tmp_path).strip() == "torch.Size([2, 4])"


def test_every_dependency_is_pinned_exactly():
    pins = [line.split("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    assert all("==" in pin for pin in pins if pin)
    pinned = {normal(pin.split("==")[0]) for pin in pins if pin}
    assert needed(["purify-engine[digits,dev,kernels,mutants]"]) - {"purify-engine"} <= pinned


def needed(roots: list[str]) -> set[str]:
    """Names of all distributions that `roots` require here, however deep."""
    found: set[str] = set()
    waiting = [Requirement(root) for root in roots]
    while waiting:
        wanted = waiting.pop()
        try:
            below = [Requirement(line) for line in requires(wanted.name) or ()]
        except PackageNotFoundError:
            continue
        waiting += [one for one in below if applies(one, wanted.extras) and normal(one.name) not in found]
        found.add(normal(wanted.name))
    return found


def applies(requirement: Requirement, extras: set[str]) -> bool:
    return requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in ("", *extras))


def normal(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")
