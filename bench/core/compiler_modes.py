"""The modes of torch.compile that take part: what is run, and what reports look for."""

from __future__ import annotations

from typing import Any

NAME = "torch.compile"
# Changes to a mode's own options. Of max-autotune: convolutions stay cuDNN's, which chooses by timing, as in every variant here,
# and the few small matrix products of the time embedding cuBLAS's. With Triton's among the candidates, and each pointwise kernel
# tuned by coordinate descent, a batch compiles for minutes.
MODES: dict[str, dict[str, Any]] = {
    "max-autotune": {
        "coordinate_descent_tuning": False, "max_autotune_conv_backends": "ATEN", "max_autotune_gemm_backends": "ATEN"
    },
    "reduce-overhead": {},
}  # fmt: skip
