"""`purify-engine bench`: latency and throughput on this machine, the engine beside plain PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from purify_engine.cli.console import Meter, say, show
from purify_engine.cli.loading import Device, LayoutName, NetworkPrecision, PresetName, load_purifier
from purify_engine.config import require

if TYPE_CHECKING:
    import torch

    from purify_engine.benchmark.throughput import Benchmark, Point
    from purify_engine.purifier import GuidedPurifier

CPU_BATCHES, GPU_BATCHES = (1, 4, 16), (1, 8, 64, 256)
RANDOM_STEPS = 10  # of a purifier with random weights: a purification's time is that of a step times its steps

Batches = Annotated[list[int] | None, Parameter(negative_iterable=())]


def bench(
    *,
    purifier: str = "digits",
    preset: PresetName = None,
    layout: LayoutName = None,
    batch: Batches = None,
    device: Device = "auto",
    precision: NetworkPrecision = "auto",
    seconds: float = 60,
    output: Path | None = None,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Time whole purifications at several batch sizes, beside the same written in plain PyTorch on the same networks.

    Every variant is measured in turn, so that a busy machine slows all of them alike. The images are random.

    Parameters
    ----------
    purifier:
        An embedded name, a folder, a checkpoint, a Hub id; or a published architecture with random weights: ddpm-cifar10,
        ddpmpp-cifar10, adm-imagenet256, each guided by a ResNet-18, or by a WRN-28-10 as in ddpm-cifar10+wrn-28-10.
    batch:
        Images a call, any number of times; 1, 4, 16 on a CPU and 1, 8, 64, 256 on a GPU by default.
    seconds:
        About how long to measure, all told. What does not fit is left out, and said so.
    output:
        Also write a report with charts: one HTML file, no scripts, nothing fetched.
    json:
        Print the result as one JSON line.
    """
    from purify_engine.benchmark.chart import write_chart
    from purify_engine.benchmark.throughput import measure
    from purify_engine.devices import place, torch_device

    require(seconds > 0, "seconds", "positive", seconds)
    where = torch_device(device)
    batches = list(batch or (GPU_BATCHES if where.type == "cuda" else CPU_BATCHES))
    require(min(batches) >= 1, "batch", "at least 1", min(batches))
    ours, done = place(_purifier(purifier, where, preset, layout), where, precision), 0
    with Meter("bench") as meter:

        def tell(point: Point) -> None:
            nonlocal done
            done += 1
            meter.update(done, done + 1, batch=point.batch, variant=point.variant)

        result = measure(ours, purifier, batches, seconds, tell)
        meter.update(done, done)
    if output is not None:
        write_chart(output, result)
    _say(result, output, as_json=json)
    return 0


def _purifier(name: str, device: torch.device, preset: str | None, layout: str | None) -> GuidedPurifier:
    from purify_engine.benchmark.networks import named_networks, random_purifier
    from purify_engine.config import PurifierConfig

    named = named_networks(name)
    if named is None:
        return load_purifier(name, device=str(device), precision="float32", preset=preset, layout=layout)
    require(preset is None, "preset", f"left out: {name} has random weights, and is timed over {RANDOM_STEPS} steps", preset)
    return random_purifier(*named, PurifierConfig(t_star=100, num_steps=RANDOM_STEPS), device=device)


def _say(result: Benchmark, output: Path | None, *, as_json: bool) -> None:
    if as_json:
        say({**result.record(), "report": None if output is None else str(output)}, "", as_json=True)
        return
    from rich.table import Table

    from purify_engine.benchmark.chart import duration, rate

    title = f"{result.purifier}, {result.steps} steps, {result.precision}, on {result.machine['machine']}"
    table = Table(title=title, title_justify="left", header_style="bold", pad_edge=False)
    for heading in ("batch", "variant", "median", "p90", "p99", "calls", "images/s", "to eager fp32"):
        table.add_column(heading, justify="left" if heading == "variant" else "right")
    for point in result.points:
        if point.timing is None:
            table.add_row(str(point.batch), f"{point.variant}: {point.note}")
            continue
        times = (duration(value) for value in (point.timing.median, point.timing.p90, point.timing.p99))
        ratio, speed = result.speed_up(point), point.images_per_second or 0.0
        beside = "–" if ratio is None else f"{ratio:.2f}×"
        table.add_row(str(point.batch), point.variant, *times, str(point.timing.n), rate(speed), beside)
    show(table)
    rounded = " and ".join(result.machine.get("tf32", []))
    tf32 = f" · eager fp32 and the naive loop: TF32 in {rounded}" if rounded else ""
    print(f"engine: {result.execution}{tf32}" + ("" if output is None else f" · charts in {output}"))
