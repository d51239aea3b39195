"""The tests of tests/on_a_fake_gpu.py, in a process of their own: what makes PyTorch speak of a GPU must be loaded before it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

ROOT = Path(__file__).parent.parent
START = "import ctypes, sys; [ctypes.CDLL(path, ctypes.RTLD_GLOBAL) for path in sys.argv[1:]]; import pytest; "


def test_a_purification_on_a_gpu_asks_nothing_of_the_host_in_any_form(tmp_path):
    run_those("not slow", tmp_path)


@pytest.mark.slow
def test_nor_in_the_other_combinations(tmp_path):
    run_those("slow", tmp_path)


def run_those(marked: str, tmp_path: Path) -> None:
    arguments = ["-q", "--tb=short", "-p", "no:cacheprovider", "-m", marked, str(ROOT / "tests" / "on_a_fake_gpu.py")]
    code = f"{START}sys.exit(pytest.main({arguments}))"
    libraries = [compiled(tmp_path)] if torch.version.cuda is None else []
    done = subprocess.run([sys.executable, "-c", code, *libraries], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def compiled(folder: Path) -> str:
    """tests/fake_gpu.cpp as a library."""
    home, library = Path(torch.__file__).parent, folder / "fake_gpu.so"
    flags = ["-std=c++20", "-shared", "-fPIC", f"-I{home / 'include'}", f"-L{home / 'lib'}", f"-Wl,-rpath,{home / 'lib'}"]
    command = ["g++", *flags, ROOT / "tests" / "fake_gpu.cpp", "-o", library, "-lc10", "-ltorch_cpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return str(library)
