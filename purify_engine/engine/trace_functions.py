"""Whether Python code is being traced in this thread: by a debugger, a coverage tool, or a library that looks for derivatives.

A replay runs none of the Python code that it was captured of, so a tracer would see nothing of it. AutoAttack's check for dynamic
defences is such a tracer: it looks for frames of functions named `grad` and `backward`.
"""

from __future__ import annotations

import sys
from typing import Any

TRACED = "a Python tracer is active, and would see nothing of a replay"


def tools_of(monitoring: Any) -> tuple[int, ...]:
    """Every tool number that `sys.monitoring` gives out, but for the profiler's and the optimiser's: a profiler times what runs
    without it. None before Python 3.12, which has no such module."""
    return () if monitoring is None else tuple({*range(6)} - {monitoring.PROFILER_ID, monitoring.OPTIMIZER_ID})


_MONITORING: Any = getattr(sys, "monitoring", None)
_TOOLS = tools_of(_MONITORING)


def is_python_traced() -> bool:
    """Whether `sys.settrace` is in force in this thread, or a tool other than a profiler is registered with `sys.monitoring`."""
    return sys.gettrace() is not None or any(_MONITORING.get_tool(tool) is not None for tool in _TOOLS)
