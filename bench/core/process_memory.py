"""What a process takes of the machine's memory, as Linux counts it."""

from __future__ import annotations

import ctypes
import gc
import re
from pathlib import Path

STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def settled() -> int:
    """Resident bytes of this process, after all that is free was given back to the system."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return status("VmRSS")


def peak() -> int:
    """The most resident bytes since `forget_peak`."""
    return status("VmHWM")


def forget_peak() -> None:
    """Count the peak from here."""
    CLEAR_REFS.write_text("5")


def status(name: str) -> int:
    """One entry of /proc/self/status, in bytes."""
    found = re.search(rf"{name}:\s+(\d+) kB", STATUS.read_text())
    assert found, f"{STATUS} says nothing of {name}"
    return 1024 * int(found[1])
