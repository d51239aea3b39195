"""Every kernel compiles for every architecture: no spills, within the shared memory there is, onto matrix units. Needs no GPU.

For Hopper what the kernels' files list, for others one variant of each kernel; what networks launch takes minutes more, and so
does everything for every architecture (`make aot`).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.kernels import aot


@pytest.fixture(scope="module")
def reports(pytestconfig: pytest.Config) -> list[dict[str, Any]]:
    """What became of every kernel; what has not changed since the last time is not compiled again."""
    scopes = {capability: "listed" if capability == (9, 0) else "each kernel" for capability in aot.ARCHITECTURES}
    return aot.compile_all(scopes, cache(pytestconfig))


def cache(pytestconfig: pytest.Config) -> Path:
    assert pytestconfig.cache is not None
    return Path(pytestconfig.cache.mkdir("triton"))


@pytest.mark.parametrize("capability", aot.ARCHITECTURES, ids=str)
def test_kernels_neither_spill_nor_outgrow_the_gpu_nor_leave_its_matrix_units(reports, capability):
    found = [report for report in reports if tuple(report["capability"]) == capability]
    assert found
    assert not [report for report in found if report["faults"]]


@pytest.mark.slow
def test_nor_does_what_the_shipped_and_the_benchmarked_networks_launch_on_hopper(pytestconfig, reports):
    found = aot.compile_all({(9, 0): "launched"}, cache(pytestconfig))
    assert len(found) > 1.5 * sum(report["capability"] == [9, 0] for report in reports)
    assert not [report for report in found if report["faults"]]


@pytest.mark.parametrize("capability", aot.ARCHITECTURES, ids=str)
def test_the_matrix_kernels_are_among_them(reports, capability):
    found = {report["kernel"] for report in reports if tuple(report["capability"]) == capability and report["multiplies"]}
    assert found >= {"_attention_kernel", "_attention_queries_kernel", "_attention_keys_kernel", "_conv3x3_kernel"}


@pytest.mark.parametrize("capability", aot.ARCHITECTURES, ids=str)
def test_bytes_are_rounded_as_the_reference_rounds_them_without_a_fused_multiply_add(reports, capability):
    kernels = [report for report in reports if report["kernel"] == "_to_images_kernel"]
    found = [report["contracted"] for report in kernels if tuple(report["capability"]) == capability]
    assert found
    assert not any(found)


def test_noise_and_the_sums_around_it_are_rounded_operation_by_operation(reports):
    """In float32; CUDA C++ does so too (setup.py), and tests/ops/test_cuda.py compares the bits."""
    kernels = {"_philox_kernel", "_q_sample_kernel", "_guided_step_kernel"}
    found = [report for report in reports if report["kernel"] in kernels and "*fp32" in report["types"]]
    assert {report["kernel"] for report in found} == kernels
    assert not any(report["fused"] for report in found)
    assert not any("sqrt" in approximation for report in found for approximation in report["approximations"])


def test_the_gradient_of_a_norm_of_single_elements_fuses_no_product_which_would_leave_its_rounding_behind(reports):
    found = [report for report in reports if report["kernel"] == "_backward_kernel" and report["capability"] == [9, 0]]
    single = [report["fused"] for report in found if "'WIDTH': 1," in report["variant"]]
    assert len(single) == 2
    assert not any(single)
    assert all(report["fused"] for report in found if "'WIDTH': 1," not in report["variant"])


def test_attention_in_float32_takes_no_exponential_or_logarithm_of_the_gpu_which_are_wrong_by_two_units(reports):
    kernels = {"_attention_kernel", "_attention_queries_kernel", "_attention_keys_kernel"}
    found = [report for report in reports if report["kernel"] in kernels]
    single = [report for report in found if not {"*fp16", "*bf16"} & set(report["types"])]
    assert {report["kernel"] for report in single} == kernels
    assert not any(report["approximations"] for report in single)
    assert all(report["approximations"] for report in found if report not in single)  # those that 16 bits do not show


def test_a_spill_too_much_memory_and_idle_matrix_units_are_seen():
    """The harness on tiles that no table would choose; in a process of its own, since this one may hold the interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    run = subprocess.run([sys.executable, "-c", _BAD_TILES], env=environment, cwd=aot.ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    seen = run.stdout.splitlines()
    assert "spills" in seen[0]
    assert "shared memory" in seen[1]
    assert "though it multiplies 16 rows" in seen[2]


_BAD_TILES = """
from unittest import mock
from tests.kernels import aot
from purify_engine.kernels import _tiles, attention

for tile in ((64, 32, 4, 2), (64, 128, 8, 3), (16, 16, 4, 2)):
    with mock.patch.object(_tiles, "attention_backward", lambda *problem: _tiles.AttentionTile(*tile)):
        keys = next(v for v in attention.variants() if v.kernel is attention._attention_keys_kernel)
    if tile[0] == 16:
        aot.SMALL_MATRIX = "FROBNICATE"
    print(aot.compiled(keys, (9, 0))["faults"])
"""
