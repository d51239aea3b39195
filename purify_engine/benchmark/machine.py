"""What a figure was measured on: the machine's card, and its two ceilings, by a copy and by a matrix product."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from purify_engine.benchmark.harness import Clock, clocks, interleaved
from purify_engine.devices import tf32_in


def machine_card(device: torch.device | str) -> dict[str, Any]:
    """Everything about the machine and the versions that a figure depends on, as plain data."""
    where = torch.device(device).type
    return {
        "machine": machine_name(device),
        "device": where,
        "cpu": processor(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": version("triton") if importlib.util.find_spec("triton") else None,
        **(_gpu_card(device) if where == "cuda" else {}),
    }


def _gpu_card(device: torch.device | str) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(device)
    return {
        "capability": f"{properties.major}.{properties.minor}",
        "tf32": tf32_in(torch.device(device)),
        "multiprocessors": properties.multi_processor_count,
        "l2_bytes": properties.L2_cache_size,
        "memory_bytes": properties.total_memory,
        "driver": _driver(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def _driver() -> str | None:
    """The driver's version as nvidia-smi says it, None where that is not there."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    asked = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    versions = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=False).stdout.split()
    return versions[0] if versions else None


def machine_name(device: torch.device | str = "cpu") -> str:
    """The GPU's name; of a CPU, its name and how many threads compute."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{processor()}, {torch.get_num_threads()} threads"


def processor() -> str:
    """The CPU as its maker calls it."""
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.exists() else None
    return found[1] if found else platform.processor() or platform.machine()


def file_name(machine: str) -> str:
    """A machine's name as part of a file's name."""
    return re.sub(r"\W+", "-", machine).strip("-").lower()


def ceilings(device: torch.device | str, *, toy: bool = False) -> dict[str, float]:
    """The two rates that nothing on this machine exceeds for long, measured here and now.

    "copy": bytes/s of a copy much larger than any cache, read and written bytes together. "matmul DTYPE": FLOP/s of a large
    matrix product on random data, as PyTorch computes it by default. `toy` makes both tiny, for a dry run.
    """
    on_gpu = torch.device(device).type == "cuda"
    clock = list(clocks(device).values())[-1]
    size = 2**20 if toy else 2**30 if on_gpu else 2**27
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    rates = {"copy": 2 * size / _median(lambda: target.copy_(source), clock, toy)}
    side = 64 if toy else 8192 if on_gpu else 1024
    for dtype in (torch.float32, torch.bfloat16) if on_gpu else (torch.float32,):
        left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        seconds = _median(lambda a=left, b=right: a @ b, clock, toy)
        rates[f"matmul {str(dtype).removeprefix('torch.')}"] = 2 * side**3 / seconds
    return rates


def _median(call: Any, clock: Clock, toy: bool) -> float:
    return interleaved({"it": call}, clock, seconds=0 if toy else 1.0, least=3)["it"].median
