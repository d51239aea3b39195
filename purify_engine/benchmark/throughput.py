"""What a user waits for: the latency of one image, and images per second against the batch, the engine beside its opponents."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from purify_engine import devices
from purify_engine.benchmark.eager_baseline import BASELINES
from purify_engine.benchmark.harness import Clock, CudaClock, Timing, interleaved, wall_clock
from purify_engine.benchmark.machine import machine_card
from purify_engine.config import require
from purify_engine.purifier import GuidedPurifier
from purify_engine.types import Images

ENGINE, OPPONENT = "engine", "eager fp32"
WARM_UP, LEAST = 1, 3  # rounds; a purification is long, and its first call compiles, captures and allocates


@dataclass(frozen=True)
class Point:
    """One variant at one batch size; without a timing, `note` says why there is none."""

    variant: str
    batch: int
    timing: Timing | None
    note: str = ""

    @property
    def images_per_second(self) -> float | None:
        """By the median."""
        return None if self.timing is None else self.batch / self.timing.median

    def record(self) -> dict[str, Any]:
        """As plain data, seconds."""
        about = {"variant": self.variant, "batch": self.batch, "note": self.note, "images_per_second": self.images_per_second}
        return {**about, **(self.timing.record() if self.timing else {})}


@dataclass(frozen=True)
class Benchmark:
    """The points of one run, and everything that they depend on."""

    purifier: str
    steps: int  # U-Net calls of one purification
    precision: str  # of the engine's networks
    execution: str  # how the engine runs, and why not as a graph where it does not
    machine: dict[str, Any] = field(hash=False)
    points: tuple[Point, ...]

    def point(self, variant: str, batch: int) -> Point | None:
        return next((point for point in self.points if (point.variant, point.batch) == (variant, batch)), None)

    def speed_up(self, point: Point) -> float | None:
        """Times as fast as `eager fp32` at the same batch."""
        rival = self.point(OPPONENT, point.batch)
        return rival.timing.median / point.timing.median if point.timing and rival and rival.timing else None

    def record(self) -> dict[str, Any]:
        """As plain data."""
        about = {"purifier": self.purifier, "steps": self.steps, "precision": self.precision, "execution": self.execution}
        points = [{**point.record(), "speed_up": self.speed_up(point)} for point in self.points]
        return {**about, "machine": self.machine, "points": points}


def measure(
    purifier: GuidedPurifier,
    name: str,
    batches: Sequence[int],
    seconds: float,
    on_point: Callable[[Point], None] | None = None,
) -> Benchmark:
    """Time whole purifications at every batch size in `batches`, about `seconds` in all, every variant in turn.

    A batch that does not fit into memory, or would not fit into the time, has a point that says so.
    """
    require(len(batches) > 0 and min(batches) >= 1, "batch", "at least 1", list(batches))
    require(seconds > 0, "seconds", "positive", seconds)
    device = purifier.device
    clock = CudaClock(cold=False, device=device) if device.type == "cuda" else wall_clock
    variants = {ENGINE: purifier, **opponents(purifier)}
    points: list[Point] = []
    ends, pace = time.monotonic() + seconds, 0.0  # seconds of one image in one round
    for place, batch in enumerate(sorted(set(batches))):
        left = ends - time.monotonic()
        if place and pace * batch * (WARM_UP + LEAST) > left:
            at_batch = [Point(variant, batch, None, "left out: no time left") for variant in variants]
        else:
            at_batch = _at(batch, variants, purifier, clock, left / (len(set(batches)) - place))
            pace = sum(point.timing.median for point in at_batch if point.timing) / batch
        for point in at_batch:
            points.append(point)
            if on_point is not None:
                on_point(point)
    reason = purifier.execution_reason
    execution = "graph" if reason is None else f"loop ({reason})"
    precision = devices.precision_of(purifier.denoiser)
    return Benchmark(name, purifier.num_steps, precision, execution, machine_card(device), tuple(points))


def opponents(purifier: GuidedPurifier) -> dict[str, Any]:
    """The baselines that make sense where the purifier is: bf16 is no opponent on a CPU."""
    on_gpu = purifier.device.type == "cuda"
    return {name: make(purifier) for name, make in BASELINES.items() if on_gpu or "bf16" not in name}


def _at(batch: int, variants: dict[str, Any], purifier: GuidedPurifier, clock: Clock, seconds: float) -> list[Point]:
    images = _images(purifier, batch)
    fitting: dict[str, Callable[[], object]] = {}
    too_large = []
    with torch.no_grad():
        for name, variant in variants.items():
            try:
                variant(images)
                fitting[name] = partial(variant, images)
            except torch.OutOfMemoryError:
                too_large.append(Point(name, batch, None, "out of memory"))
        timings = interleaved(fitting, clock, seconds=seconds, least=LEAST, warm_up=0) if fitting else {}
    return [*(Point(name, batch, timing) for name, timing in timings.items()), *too_large]


def _images(purifier: GuidedPurifier, batch: int) -> Images:
    network, device = purifier.denoiser.config, purifier.device
    shape = batch, network.in_channels, network.image_size, network.image_size
    return torch.rand(shape, device=device, generator=torch.Generator(device).manual_seed(batch))
