"""Compiling kernels in Triton where no GPU is busy with it: processes that stand before a GPU of a given capability."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

from bench.core.comparison import first_line
from bench.subjects.launches import Compiled

ASSUMED = (9, 0)  # the capability where there is no GPU


class Target:
    """Stands for a GPU: all that Triton asks of one before it launches."""

    def __init__(self, capability: tuple[int, int]) -> None:
        from triton.backends.compiler import GPUTarget

        self.target = GPUTarget("cuda", 10 * capability[0] + capability[1], 32)

    def get_current_target(self) -> Any:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_for(capability: tuple[int, int]) -> None:
    """Begin a process that compiles."""
    from triton.runtime import driver

    torch.set_num_threads(1)
    driver.set_active(Target(capability))


def compile_one(what: Compiled) -> str:
    """Compile for a launch; what went wrong, or nothing."""
    kernel, arguments = what.launch()
    try:
        compiled = kernel.run(grid=what.programs, warmup=True, **arguments, **dict(what.options))
    except Exception as fault:
        return f"{what.kernel}: {first_line(fault)}"
    from triton.backends.nvidia.driver import CudaLauncher

    with contextlib.suppress(Exception):  # some versions of Triton compile the call too, by the C compiler; it needs libcuda
        CudaLauncher(compiled.src, compiled.metadata)
    return ""
