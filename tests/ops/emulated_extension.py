"""The CUDA extension on a machine without a GPU: csrc/cuda compiled by a C++ compiler against the headers of `emulated_cuda`.

The same files that nvcc takes, and the same launchers in front of them. Every operation of a kernel is IEEE's on both sides
(setup.py), so what is shown here holds on a GPU but for the functions of its own library: exponential, sine and logarithm in
double, and the fast division.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pybind11

SOURCES = Path(__file__).parents[2] / "csrc" / "cuda"
HEADERS = Path(__file__).parent / "emulated_cuda"
# Without the check of longjmp, which does not know fibres; without fused multiply-adds, like nvcc's -fmad=false.
FLAGS = [
    "-std=c++17",
    "-O1",
    "-g0",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-U_FORTIFY_SOURCE",
    "-Wno-unknown-pragmas",
]


def build(folder: Path) -> ModuleType:
    """Compile and load the extension, in `folder`."""
    compiler = os.environ.get("CXX", "g++")
    includes = [f"-I{path}" for path in (HEADERS, pybind11.get_include(), sysconfig.get_path("include"))]
    objects = {path: folder / f"{path.name}.o" for path in SOURCES.iterdir() if path.suffix in (".cu", ".cpp")}
    commands = [[compiler, *FLAGS, *includes, "-x", "c++", "-c", path, "-o", target] for path, target in objects.items()]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(run, commands))
    library = folder / f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
    run([compiler, "-shared", *objects.values(), "-o", library])
    spec = importlib.util.spec_from_file_location("emulated_cuda._cuda", library)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(command: list[str | Path]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
