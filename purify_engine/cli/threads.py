"""How OpenMP's threads wait for one another; decided before PyTorch loads them."""

from __future__ import annotations

import os

ASKED = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")  # any of them is a choice of the user's


def wait_without_spinning() -> None:
    """Let threads that wait for one another sleep, in place of keeping a core busy that another process needs.

    A small network makes thousands of short parallel regions a second; threads that spin between them take turns with
    the other work at the scheduler's pace. What the environment says is left as it is.
    """
    if not any(name in os.environ for name in ASKED):
        os.environ["OMP_WAIT_POLICY"] = "passive"
