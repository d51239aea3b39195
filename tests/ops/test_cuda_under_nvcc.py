"""What nvcc makes of csrc/cuda: machine code for every GPU of setup.py's list, with nothing of a kernel in slow memory."""

from __future__ import annotations

import importlib.util
import re
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.system

ROOT = Path(__file__).parents[2]
KERNEL = re.compile(r"Compiling entry function '(\w+)' for '(sm_\d+)'")
USE = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")


@pytest.fixture(scope="module")
def build() -> ModuleType:
    """setup.py, which knows nvcc and its flags."""
    spec = importlib.util.spec_from_file_location("setup_of_purify_engine", ROOT / "setup.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("source", sorted(ROOT.glob("csrc/cuda/*.cu")), ids=lambda path: path.name)
def test_no_kernel_keeps_anything_on_the_stack(source, build, tmp_path):
    nvcc = build.find_nvcc()
    assert nvcc is not None, "nvcc is missing; install the CUDA toolkit to run this check"
    command = [nvcc, *build.NVCC_FLAGS, *build.targets(str(nvcc)), "-Xptxas=-v", "-c", source, "-o", tmp_path / "kernels.o"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr
    kernels = KERNEL.findall(done.stderr)
    assert {architecture for _, architecture in kernels} == {f"sm_{number}" for number in build.ARCHITECTURES}
    used = USE.findall(done.stderr)
    assert len(used) >= len(kernels) > 0
    assert set(used) == {("0", "0", "0")}, done.stderr


@pytest.mark.parametrize("source", ["philox.cu", "q_sample.cu", "guided_step.cu"])
def test_noise_and_sums_in_float32_are_rounded_operation_by_operation(source, build, tmp_path):
    """As in the kernels in Triton, whose bits they equal; products are fused nowhere but where that is spelt out."""
    command = [build.find_nvcc(), *build.NVCC_FLAGS, "-arch=compute_80", "-ptx", ROOT / "csrc" / "cuda" / source]
    done = subprocess.run([*command, "-o", tmp_path / "kernels.ptx"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    ptx = (tmp_path / "kernels.ptx").read_text()
    assert "mul.rn.f32" in ptx and "sqrt.rn.f32" in ptx
    assert not re.findall(r"fma\.rn\.f32|\.approx\S*\.f32", ptx)  # float64 has logarithms of the library's
