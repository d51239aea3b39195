"""Compiling kernels in Triton where no GPU is busy with it: processes that stand before a GPU of a given capability."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections.abc import Collection
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch

from bench.core.comparison import first_line
from bench.core.run import Run
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


def capability_of(device: torch.device) -> tuple[int, int]:
    """Of the GPU, or the one that is assumed where there is none."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else ASSUMED


def compile_beforehand(run: Run, launches: Collection[Compiled]) -> None:
    """Compile for all these launches, side by side on all cores, into Triton's cache; a check says how many are wrong."""
    os.environ.pop("TRITON_INTERPRET", None)  # for the processes that compile
    processes, fresh = max(1, min(os.cpu_count() or 1, len(launches))), multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, fresh, initializer=compile_for, initargs=(capability_of(run.device),)) as pool:
        faults = [fault for fault in pool.map(compile_one, launches) if fault]
    run.check("compiled", not faults, "; first ".join([f"{len(launches) - len(faults)} of {len(launches)}", *faults[:1]]))


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
