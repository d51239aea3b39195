"""What this machine offers to the ops. `purify-engine doctor` prints it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from purify_engine.ops import cpp, cuda
from purify_engine.ops import library as _library  # noqa: F401  (fills OPS)
from purify_engine.ops.registry import OPS


@dataclass(frozen=True)
class Capability:
    """Engines and devices at hand."""

    cpp: bool  # the C++ extension is built and loads
    instruction_set: str | None  # what it runs on
    instruction_sets: tuple[str, ...]  # what it could run on, best first
    threads: int  # torch's setting, which the extension follows
    cuda_room: bool  # the CUDA extension is built and loads
    cuda: str | None  # the name of the GPU that torch would use


def capability() -> Capability:
    """Look at this machine."""
    return Capability(
        cpp=cpp.room is not None,
        instruction_set=None if cpp.room is None else cpp.room.instruction_set(),
        instruction_sets=() if cpp.room is None else tuple(cpp.room.instruction_sets()),
        threads=torch.get_num_threads(),
        cuda_room=cuda.room is not None,
        cuda=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    )


def engines(device: str) -> dict[str, str]:
    """The engine that each op runs on for tensors of `device` ("cpu", "cuda")."""
    return {name: op.choose(device) for name, op in OPS.items()}
