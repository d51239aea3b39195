"""What an offline run costs beside its purifier, and what threads do to small networks, alone and beside other work.

    python -m bench offline     appends to bench/results/offline-MACHINE.jsonl; takes about four minutes

Images a second of whole runs (PNG files in, PNG files out, every record on the disk) with a purifier that costs nothing; how
much longer the embedded digits take in a run than in a bare loop over tensors; what a long run holds in memory; and the digits
with one thread and with all, where threads that wait spin and where they sleep, on an idle machine and beside a busy process.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch

from bench.core.run import ROOT, Run, begin, parser
from bench.subjects.offline import Memory, Nowhere, Unchanged, bare_loop, photographs
from purify_engine import GuidedPurifier
from purify_engine.config import OfflineConfig
from purify_engine.data import digits, open_sink, open_source
from purify_engine.data.compute import PurifierCompute
from purify_engine.data.items import ImageShape
from purify_engine.data.run import run as run_offline

BATCH_SIZE = 64
REPEATS = 3
FILES = {32: 6000, 256: 600}  # pixels a side: images
LONG, MARKS = 200_000, 10  # images of a run whose memory is watched, and how often
BUSY = "while True: pass"
DIGITS = """
import sys, time, torch
from purify_engine import GuidedPurifier
torch.set_num_threads(int(sys.argv[1]))
purifier, images = GuidedPurifier.from_pretrained("digits"), torch.rand(int(sys.argv[3]), 1, 8, 8)
ids, count = torch.arange(len(images)), int(sys.argv[2])
purifier(images, ids=ids)
started = time.perf_counter()
for _ in range(0, count, len(images)):
    purifier(images, ids=ids)
print(count / (time.perf_counter() - started))
"""


def main(words: list[str]) -> int:
    bench, _ = begin("offline", parser("offline", __doc__), words)
    with tempfile.TemporaryDirectory(prefix="purify-offline-") as name:
        for side, count in FILES.items():
            of_files(bench, Path(name), side, 20 if bench.toy else count)
        of_digits(bench, Path(name), 80 if bench.toy else 2000)
        of_memory(bench, Path(name), 4000 if bench.toy else LONG)
    of_threads(bench, 64 if bench.toy else 320)
    return bench.close()


def of_files(bench: Run, folder: Path, side: int, count: int) -> None:
    """Whole runs from PNG files to PNG files, the purifier left out; the median of a few."""
    source = open_source(photographs(folder / f"in-{side}", side, count), ImageShape(3, side))
    walls, processors = [], []
    for repeat in range(1 if bench.toy else REPEATS):
        sink = open_sink(source, folder / f"out-{side}-{repeat}")
        clocks = time.perf_counter(), time.process_time()
        summary = run_offline(Unchanged(), source, sink, config=OfflineConfig(batch_size=BATCH_SIZE))
        walls.append(time.perf_counter() - clocks[0])
        processors.append(time.process_time() - clocks[1])
        assert summary.ok == count
    rate, cost = count / median(walls), 1e3 * median(processors) / count
    says = f"{side}x{side} PNG files: {rate:,.0f} images/s, {cost:.2f} ms of processors an image"
    bench.figure(says, kind="offline", part="files", pixels=side, images=count, rate=rate, processor_ms=cost, seconds=walls)


def of_digits(bench: Run, folder: Path, count: int) -> None:
    """The embedded digits in a run, and in a bare loop over tensors, in turns."""
    purifier = GuidedPurifier.from_pretrained("digits")
    images = digits("test")[0].repeat(1 + count // 360, 1, 1, 1)[:count].contiguous()
    np.save(folder / "digits.npy", images.numpy())
    source = open_source(folder / "digits.npy", ImageShape(1, 8))
    bare_loop(purifier, images[: 2 * BATCH_SIZE], BATCH_SIZE)
    loops, runs = [], []
    for repeat in range(1 if bench.toy else REPEATS):
        loops.append(bare_loop(purifier, images, BATCH_SIZE))
        sink = open_sink(source, folder / f"digits-{repeat}.npy")
        started = time.perf_counter()
        run_offline(PurifierCompute(purifier), source, sink, config=OfflineConfig(batch_size=BATCH_SIZE))
        runs.append(time.perf_counter() - started)
    over = median(run / loop for run, loop in zip(runs, loops, strict=True)) - 1
    rate, threads = count / median(runs), torch.get_num_threads()
    says = f"digits: {rate:,.0f} images/s with {threads} threads, {100 * over:+.1f} % to the bare loop"
    bench.figure(says, kind="offline", part="digits", images=count, rate=rate, over=over, threads=threads, seconds=runs)


def of_memory(bench: Run, folder: Path, count: int) -> None:
    """What the process holds after each tenth of a long run."""
    held: list[int] = []

    def seen(id: int) -> None:
        if id % (count // MARKS) == count // MARKS - 1:
            gc.collect()
            held.append(resident_bytes())

    image = np.random.default_rng(0).integers(0, 256, (3, 32, 32), dtype=np.uint8)
    run_offline(Unchanged(), Memory(image, count, seen), Nowhere(folder / "long"), config=OfflineConfig(batch_size=BATCH_SIZE))
    grown = held[-1] - held[1]
    says = f"{count:,} images: {held[-1] / 2**20:.0f} MiB held in the end, {grown / 2**20:+.1f} MiB since a fifth of them"
    bench.figure(says, kind="offline", part="memory", images=count, held=held, grown=grown)


def of_threads(bench: Run, count: int) -> None:
    """Images a second of the digits: threads by how they wait by what else the machine does; in turns."""
    rates: dict[tuple[int, str, str], list[float]] = {}
    everything = sorted({1, os.cpu_count() or 1})
    for _ in range(1 if bench.toy else REPEATS):
        for beside in ("nothing", "a busy process"):
            for threads, waiting in ((threads, waiting) for threads in everything for waiting in ("default", "passive")):
                if threads == 1 and waiting == "default":
                    continue  # a thread that is alone waits for none
                rates.setdefault((threads, waiting, beside), []).append(_rate(threads, waiting, beside, count))
    for (threads, waiting, beside), found in rates.items():
        about = {"threads": threads, "waiting": waiting, "beside": beside}
        says = f"digits with {threads} threads that wait {waiting}, beside {beside}: {median(found):,.0f} images/s"
        bench.figure(says, kind="offline", part="threads", **about, rate=median(found), rates=found)


def _rate(threads: int, waiting: str, beside: str, count: int) -> float:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    environment |= {"OMP_NUM_THREADS": str(threads)} | ({} if waiting == "default" else {"OMP_WAIT_POLICY": waiting})
    words = [sys.executable, "-c", DIGITS, str(threads), str(count), str(BATCH_SIZE)]
    busy = subprocess.Popen([sys.executable, "-c", BUSY]) if beside == "a busy process" else None
    try:
        told = subprocess.run(words, env=environment, cwd=ROOT, capture_output=True, text=True, check=True, timeout=600)
    finally:
        if busy is not None:
            busy.kill()
            busy.wait()
    return float(told.stdout)


def resident_bytes() -> int:
    """Of this process, now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
