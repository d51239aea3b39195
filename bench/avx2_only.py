"""A processor held to AVX2, so that figures tell of those without wider vectors: PyTorch, oneDNN, MKL and the engine can be told.

Memory, caches and the clock stay the machine's own.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from purify_engine.ops import cpp

SAYS = ", AVX2 at most"
TOLD = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}  # read at their start
DEAF = ("torch.compile", "torch.compile frozen", "ONNX Runtime", "OpenVINO")  # who reads none of these, and has to be left out


def is_told() -> bool:
    """Whether the libraries were told when this process began."""
    return TOLD.items() <= os.environ.items()


def hold(module: str, words: Sequence[str]) -> None:
    """Hold this process to AVX2. Where its libraries were not told, `module` starts once more in its place, with these words."""
    if not is_told():
        os.execve(sys.executable, [sys.executable, "-m", module, *words], {**os.environ, **TOLD})
    if cpp.room is not None:
        cpp.room.use_instruction_set("avx2")
