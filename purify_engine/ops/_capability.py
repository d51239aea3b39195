"""What this machine offers to the ops."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from purify_engine.ops import _cuda, _extension


@dataclass(frozen=True)
class Capability:
    """Extensions and devices at hand."""

    cpp: bool  # the C++ extension is built and loads
    instruction_set: str | None  # what it runs on
    instruction_sets: tuple[str, ...]  # what it could run on, best first
    threads: int  # torch's setting, which the extension follows
    cuda_extension: bool  # the CUDA extension is built and loads
    cuda: str | None  # the name of the GPU that torch would use


def capability() -> Capability:
    """What this machine can run: its extensions, instruction sets, threads and GPU."""
    return Capability(
        cpp=_extension.extension is not None,
        instruction_set=_extension.instruction_set(),
        instruction_sets=_extension.instruction_sets(),
        threads=torch.get_num_threads(),
        cuda_extension=_cuda.extension is not None,
        cuda=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    )
