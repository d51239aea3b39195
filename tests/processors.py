"""The tests that compare bits and roundings, as other processors would run them: `make check-processors`, or by hand

    python -m tests.processors [NAME ...]

PyTorch, oneDNN and MKL choose their kernels by the processor; environment variables make them choose those of another. Each
setting is a run of pytest of its own, two at a time where there are two cores. NAME picks settings; without any, all are run.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parent.parent
# What is promised to the bit, and what is judged by the error of PyTorch on the same processor.
TESTS = (
    "tests/models/test_embedding_table.py",
    "tests/engine/test_loop.py",
    "tests/engine/test_replay.py",
    "tests/engine/test_cpu_capture.py",
    "tests/testing",
    "tests/cli/test_doctor.py",
    "tests/kernels/test_attention.py",
)
INTEL = "int mkl_serv_intel_cpu_true(void) { return 1; }\n"  # what MKL asks before it runs its fast kernels
WIDEST = ("default", "avx2", "avx512")

# Several variables a run: together they name every choice once. None of a wider vector than this processor has is asked for.
SETTINGS: dict[str, dict[str, str]] = {
    "oldest": {
        "ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_CBWR": "COMPATIBLE", "OMP_NUM_THREADS": "1",
    },
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_CBWR": "AVX2", "OMP_NUM_THREADS": "2"},
    "intel-avx2": {
        "ATEN_CPU_CAPABILITY": "avx2", "LD_PRELOAD": INTEL, "MKL_ENABLE_INSTRUCTIONS": "AVX2", "OMP_NUM_THREADS": "2",
    },
    "intel-widest": {"ATEN_CPU_CAPABILITY": "avx512", "LD_PRELOAD": INTEL, "OMP_NUM_THREADS": "1"},
}  # fmt: skip


def main(names: list[str]) -> int:
    unknown = set(names) - set(SETTINGS)
    if unknown:
        print(f"a setting must be one of {', '.join(SETTINGS)}, got {', '.join(sorted(unknown))}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
        library = intel_kernels(Path(folder))
        codes = list(pool.map(lambda name: run(name, library), names or SETTINGS))
    return int(any(codes))


def run(name: str, library: Path) -> int:
    """pytest under a setting; a line of what came of it, and all it said if that was a failure."""
    setting = on_this_processor(SETTINGS[name])
    if "LD_PRELOAD" in setting:
        setting["LD_PRELOAD"] = str(library)
    started = time.monotonic()
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS]
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive", **setting}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    says = " ".join(f"{variable}={value}" for variable, value in setting.items())
    print(f"{'ok' if done.returncode == 0 else 'FAILED'} {name} in {time.monotonic() - started:.0f} s: {says}", flush=True)
    if done.returncode:
        print(done.stdout + done.stderr, flush=True)
    return done.returncode


def on_this_processor(setting: dict[str, str]) -> dict[str, str]:
    """The setting, with PyTorch's vectors no wider than they are here."""
    import torch

    here = torch.backends.cpu.get_cpu_capability().lower()
    widest = WIDEST.index(here) if here in WIDEST else 0
    wanted = WIDEST.index(setting["ATEN_CPU_CAPABILITY"])
    return {**setting, "ATEN_CPU_CAPABILITY": WIDEST[min(wanted, widest)]}


def intel_kernels(folder: Path) -> Path:
    """A library that, loaded first, makes MKL take the kernels that it has for Intel's processors on any."""
    source, library = folder / "intel.c", folder / "intel.so"
    source.write_text(INTEL)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source], check=True)
    return library


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
