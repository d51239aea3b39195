"""The supported range of torch: from the lowest that pyproject.toml allows to the one that constraints.txt pins."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parent.parent
REQUIRED = [line for line in requires("purify-engine") or () if "extra ==" not in line]
LOWEST = next(str(next(iter(Requirement(line).specifier)).version) for line in REQUIRED if line.startswith("torch"))
PINNED = re.search(r"^torch==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]  # type: ignore[index]
THEIRS = ("torch", "triton", "sympy", "networkx", "nvidia", "mpmath")  # what a release of torch pins itself
# What leans on PyTorch's inner workings: dispatcher, autograd of custom ops, dispatch modes, storage, fake tensors.
LEANING = [
    "tests/ops/test_bypass.py",
    "tests/ops/test_who_runs.py",
    "tests/ops/test_registry.py",
    "tests/ops/test_prepacked.py",
    "tests/engine/test_cpu_capture.py",
    "tests/models/test_denoiser.py",
]


def test_the_torch_that_is_tested_lies_in_the_range():
    assert Version(LOWEST) <= Version(torch.__version__.partition("+")[0]) <= Version(PINNED)


@pytest.fixture(scope="module")
def lowest() -> Path:
    """The Python of an environment with the lowest torch, kept in build/: a build for GPUs, some gigabytes, where no other is."""
    folder = ROOT / "build" / f"torch-{LOWEST}"
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        pinned = (ROOT / "constraints.txt").read_text().splitlines()
        (folder / "constraints.txt").write_text("\n".join(line for line in pinned if not line.startswith(THEIRS)))
        others = [line for line in REQUIRED if not line.startswith("torch")]
        install = [python, "-m", "pip", "install", "-q", "-c", folder / "constraints.txt", f"torch=={LOWEST}.*", *others]
        subprocess.run([*install, "scikit-learn", "pytest"], check=True)
        (folder / "complete").touch()
    return python


def run(python: Path, *words: str) -> str:
    """On the sources of this tree, with its extension."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [python, "-W", "ignore", *words]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.system
def test_the_lowest_torch_computes_what_the_specification_says_and_purifies(lowest):
    findings = json.loads(run(lowest, "-m", "purify_engine", "doctor", "--json"))["findings"]
    told = {finding["name"]: finding["says"] for finding in findings}
    assert told["torch"].startswith(f"{LOWEST}.")
    assert "warning" not in told["dispatcher"]


@pytest.mark.system
def test_what_leans_on_pytorch_passes_its_tests_on_the_lowest(lowest):
    run(lowest, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *LEANING)
