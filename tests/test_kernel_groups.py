"""Groups of kernels: every kernel of ours and the libraries' that a step launches has one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bench.subjects.kernel_groups import OTHERS, group_of

KERNELS = Path(__file__).parent.parent / "kernels"


def test_every_kernel_of_ours_has_a_group():
    names = {name for path in KERNELS.glob("*.py") for name in re.findall(r"^def (_\w*kernel)\(", path.read_text(), re.MULTILINE)}
    assert len(names) > 15
    assert {name for name in names if group_of(name) == OTHERS} == set()


@pytest.mark.parametrize(
    "kernel, group",
    [
        ("_whole_kernel", "norm"),
        ("_residual_sum_kernel", "our sums"),
        ("sm90_xmma_dgrad_implicit_gemm_bf16bf16", "convolutions, gradients"),
        ("sm90_xmma_fprop_implicit_gemm_bf16bf16", "convolutions"),
        ("void nhwcAddPaddingKernel<__nv_bfloat16>", "layout changes"),
        ("nvjet_sm90_tst_128x256_64x4_1x2_h_bz_coopA_bias_TNN", "linear"),
        ("Memset (Device)", "pads and fills"),
        ("aten::convolution_backward", "convolutions, gradients"),
    ],
)
def test_a_library_s_kernel_is_told_by_its_name(kernel, group):
    assert group_of(kernel) == group
