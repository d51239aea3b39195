"""Who works on a run's parts: this process, several of this machine, or Ray; and how each of them gets its purifier."""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from purify_engine.config import OfflineConfig, Precision, PurifierConfig
from purify_engine.data.items import Compute, Part, Sink, Source
from purify_engine.data.manifest import Record
from purify_engine.data.pipeline import Pipeline, Told
from purify_engine.data.processes import run_in_processes
from purify_engine.data.work import Work

if TYPE_CHECKING:
    from purify_engine.data.compute import PurifierCompute

Engine: TypeAlias = Callable[[Iterable[Part]], Iterator[Record]]
Load: TypeAlias = Callable[[int], Compute]  # the number of a process -> what it computes with


def engine_of(
    compute: Compute,
    source: Source,
    sink: Sink,
    config: OfflineConfig,
    pinned: Record,
    *,
    load: Load | None,
    told: Told,
    stopped: Callable[[], bool],
) -> Engine:
    """What does the parts of a run, as `config` says. load: in place of a copy of `compute`, for other processes."""
    sizes: dict[str, Any] = {name: getattr(config, name) for name in ("part_size", "decoders", "stall_seconds")}
    sizes["batch_size"] = pinned["batch_size"]
    if config.engine == "local" and config.workers == 1:
        return lambda parts: _with_threads(pinned["threads"], Pipeline(source, sink, compute, told=told, **sizes).run(parts))
    if config.engine == "local":  # whose processes share this machine's cores
        sizes["decoders"] = config.decoders or max(1, (os.cpu_count() or 1) // config.workers)
    work = Work(source, sink, load or Copy(pickle.dumps(compute)), **sizes, threads=pinned["threads"])
    if config.engine == "local":
        return lambda parts: run_in_processes(work, parts, config.workers, told=told, stopped=stopped)
    from purify_engine.data.on_ray import run_on_ray

    how: dict[str, Any] = {"address": config.ray_address, "gpus": int(_is_on_gpu(compute)), "told": told, "stopped": stopped}
    return lambda parts: run_on_ray(work, parts, config.workers, **how)


def usual_threads(config: OfflineConfig) -> int:
    """Of each process's computations: those that are asked for, else this machine's shared by the workers."""
    torch = sys.modules.get("torch")
    here = torch.get_num_threads() if torch else os.cpu_count() or 1
    return config.threads or max(1, here // config.workers)


def _with_threads(threads: int, records: Iterator[Record]) -> Iterator[Record]:
    """The records, made with so many threads where PyTorch makes them; the process has its own number again in the end."""
    torch = sys.modules.get("torch")
    before = torch.get_num_threads() if torch else threads
    try:
        if torch and before != threads:
            torch.set_num_threads(threads)
        yield from records
    finally:
        if torch and before != threads:
            torch.set_num_threads(before)


@dataclass(frozen=True)
class Copy:
    """A pickle of what this process computes with."""

    content: bytes

    def __call__(self, number: int) -> Compute:
        compute: Compute = pickle.loads(self.content)  # written by this run itself
        return compute


@dataclass(frozen=True)
class ByName:
    """A purifier that each process loads for itself, by what names it on the command line, and as it is configured there.

    Where its device is "cuda" and a process sees several, process k takes number k, and begins anew after the last.
    """

    name: str
    config: PurifierConfig
    device: str
    precision: Precision = "auto"
    preset: str | None = None
    layout: str | None = None
    revision: str | None = None

    def __call__(self, number: int) -> PurifierCompute:
        import torch

        from purify_engine.conversion import Stated
        from purify_engine.data.compute import PurifierCompute
        from purify_engine.presets import load_networks
        from purify_engine.purifier import GuidedPurifier

        device = f"cuda:{number % torch.cuda.device_count()}" if self.device == "cuda" else self.device
        parts = load_networks(self.name, self.preset, Stated(layout=self.layout), device, self.precision, self.revision)
        return PurifierCompute(GuidedPurifier(parts.denoiser, parts.guide, self.config))


def _is_on_gpu(compute: Compute) -> bool:
    return getattr(getattr(compute, "device", None), "type", "cpu") == "cuda"
