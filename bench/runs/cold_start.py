"""From a cold process to the first purified batch: what a user waits for, by its parts.

    python -m bench cold-start

appends to bench/results/loop-MACHINE.jsonl. A purifier is saved, then a fresh Python loads it and purifies a batch twice.
Triton keeps compiled kernels from one process to the next: where the first process had to compile any, another one is measured,
and both have lines.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.core.run import ROOT, Run, begin, parser
from bench.subjects.purification import PurificationSetting
from bench.subjects.timed_purifiers import purifier_of

BATCH, STEPS = 64, 10
STAGES = ("import", "load", "first batch")  # whose sum is the wait; "second batch" is what a batch takes from then on

# What a user writes, with the times between. It is told the moment at which its process was started.
SCRIPT = """
import json, sys, time
began, folder, device, batch = float(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
marks = [began]
import torch
from purify_engine import GuidedPurifier
marks.append(time.time())
purifier = GuidedPurifier.from_pretrained(folder, device=device)
config = purifier.denoiser.unet.config
images = torch.rand(batch, config.in_channels, config.image_size, config.image_size, device=device)
def waited():
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    marks.append(time.time())
waited()
for _ in range(2):
    with torch.no_grad():
        purifier(images)
    waited()
stages = dict(zip(("import", "load", "first batch", "second batch"), (b - a for a, b in zip(marks, marks[1:]))))
print(json.dumps({**stages, "execution": purifier.execution_reason or "graph",
                  "dtype": str(next(purifier.parameters()).dtype).removeprefix("torch.")}))
"""


def main(words: list[str]) -> int:
    run, _ = begin("loop", parser("cold-start", __doc__), words)
    batch, steps = (2, 2) if run.toy else (BATCH, STEPS)
    with tempfile.TemporaryDirectory(prefix="purify-cold-") as folder:
        purifier_of(run, PurificationSetting("ddpm-cifar10", "resnet18", batch, steps)).save_pretrained(Path(folder))
        for _ in range(2):
            before = compiled_kernels()
            found = cold(run, folder, batch)
            compiled = compiled_kernels() - before
            if found is None:
                break
            told(run, found, batch, steps, compiled)
            if not compiled or run.toy:
                break
    return run.close()


def cold(run: Run, folder: str, batch: int) -> dict[str, Any] | None:
    """The seconds of each stage in a process of its own."""
    words = [sys.executable, "-c", SCRIPT, repr(time.time()), folder, str(run.device), str(batch)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))}
    try:
        done = subprocess.run(
            words, cwd=ROOT, env=environment, capture_output=True, text=True, check=True, timeout=max(run.seconds_left, 1.0)
        )
    except subprocess.TimeoutExpired:
        run.note("cold start", "not measured: no time left")
    except subprocess.CalledProcessError as failed:
        run.check("cold start", False, (failed.stderr or "").strip().splitlines()[-1][:300])
    else:
        return json.loads(done.stdout.splitlines()[-1])
    return None


def told(run: Run, found: dict[str, Any], batch: int, steps: int, compiled: int) -> None:
    """One line of a cold process."""
    wait = sum(found[stage] for stage in STAGES)
    parts = ", ".join(f"{stage} {found[stage]:.2f} s" for stage in (*STAGES, "second batch"))
    text = f"cold start, batch {batch}: {wait:.2f} s ({parts}), {compiled} kernels compiled in it, {found['execution']}"
    about = {"network": "ddpm-cifar10", "guide": "resnet18", "batch": batch, "steps": steps}
    run.figure(text, kind="cold start", **about, wait=wait, compiled=compiled, **found)
    run.headline(f"s from a cold process to {batch} images, {compiled} kernels compiled in it", round(wait, 2))


def compiled_kernels() -> int:
    """How many kernels Triton keeps compiled."""
    folder = Path(os.environ.get("TRITON_CACHE_DIR") or Path.home() / ".triton" / "cache")
    return sum(1 for _ in folder.glob("*/*.cubin"))
