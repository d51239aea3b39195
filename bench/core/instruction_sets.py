"""A processor held to AVX2, so that figures tell of those without wider vectors: PyTorch, oneDNN, MKL and the engine can be told.

Memory, caches and the clock stay the machine's own.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from purify_engine import ops

SAYS = ", AVX2 at most"
SETTINGS = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}  # read at their start
# These read none of the settings, so they are left out.
CANNOT_BE_HELD = ("torch.compile", "torch.compile frozen", "ONNX Runtime", "OpenVINO")


def is_held() -> bool:
    """Whether the libraries were told when this process began."""
    return SETTINGS.items() <= os.environ.items()


def hold(name: str, words: Sequence[str]) -> None:
    """Hold this process to AVX2. Where its libraries were not told, `python -m bench NAME` starts once more in its place."""
    if not is_held():
        os.execve(sys.executable, [sys.executable, "-m", "bench", name, *words], {**os.environ, **SETTINGS})
    if ops.capability().cpp:
        ops.use_instruction_set("avx2")
