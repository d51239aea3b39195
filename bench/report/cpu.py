"""Tables of the lines of `python -m bench cpu`: its targets, and each of its parts; and the README's sentence on CPUs.

As everywhere a ratio is of medians, within one run, and from the latest run that has both sides.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from bench.report.lines import Interval, Machine, Record, by_machine, machines
from bench.report.sentences import span_of, times_as_fast
from bench.report.targets import Target, verdicts
from purify_engine.markdown import table

NOT_YET = "Not measured yet: `python -m bench cpu` writes it."
UNET, STEP = "ddpm-cifar10", "ddpm-cifar10 + wrn-28-10"
HELD = "AVX2 at most"  # in the name of a machine that was held to it
EAGER, RUNTIMES = ("eager fp32", "eager channels_last"), ("OpenVINO", "ONNX Runtime")
# The gates, (batch, pixels, layer), as measured by `runs.cpu.LAYERS`
FROM_16_PIXELS = ((1, 32, "128->128"), (1, 16, "256->256"), (1, 16, "512->256"), (8, 32, "128->128"), (8, 16, "256->256"))
OF_8_PIXELS = ("256->256", "640->640")


def _to_best(machine: Machine, opponents: Sequence[str], **where: Any) -> Interval | None:
    """Times as fast as the best of `opponents`, all of them in the run: an opponent left out is no opponent beaten."""
    lines = machine.together(("engine", *opponents), kind="cpu", **where)
    return Interval.least(map(Interval.of, lines[1:])).over(Interval.of(lines[0])) if lines else None


def _worst(
    opponents: Sequence[str], places: Iterable[tuple[int, int, str]], *, part: str, threads: int
) -> Callable[[Machine], Interval | None]:
    """The worst ratio over (batch, pixels, name); None where one of them is not measured."""
    wanted = [{"part": part, "threads": threads, "batch": batch, "pixels": px, "name": name} for batch, px, name in places]

    def ratio(machine: Machine) -> Interval | None:
        ratios = [_to_best(machine, opponents, **where) for where in wanted]
        known = [value for value in ratios if value is not None]
        return Interval.least(known) if len(known) == len(ratios) else None

    return ratio


def _unet(batch: int, *opponents: str) -> Callable[[Machine], Interval | None]:
    return _worst(opponents, [(batch, 32, UNET)], part="unet", threads=2)


def _step(*opponents: str) -> Callable[[Machine], Interval | None]:
    return _worst(opponents, [(batch, 32, STEP) for batch in (1, 8)], part="step", threads=2)


def _gate(places: Iterable[tuple[int, int, str]]) -> Callable[[Machine], Interval | None]:
    """On one thread, as they were set."""
    return _worst(("oneDNN prepacked",), places, part="layers", threads=1)


TARGETS = (
    Target("U-Net against eager NCHW, batch 1, 2 threads", 1.9, 2.4, _unet(1, "eager fp32")),
    Target("U-Net against the better of OpenVINO and ONNX Runtime, batch 1, 2 threads", 1.5, 2.0, _unet(1, *RUNTIMES)),
    Target("U-Net against eager NCHW, batch 8, 2 threads", 2.0, 2.5, _unet(8, "eager fp32")),
    Target("U-Net against the better of OpenVINO and ONNX Runtime, batch 8, 2 threads", 1.6, 2.1, _unet(8, *RUNTIMES)),
    Target("DDPM + WRN step against the better eager layout, frozen, worse of batch 1, 8", 2.2, 2.8, _step(*EAGER)),
    Target("DDPM + WRN step against the naive loop, worse of batch 1, 8", 3.3, 4.2, _step("naive loop")),
    Target("cold layers of at least 16 px against prepacked oneDNN, the worst", 2.8, 3.3, _gate(FROM_16_PIXELS)),
    Target("cold layers of 8 px, batch 1, the worse", 2.0, 2.2, _gate([(1, 8, name) for name in OF_8_PIXELS])),
    Target("cold layers of 8 px, batch 8, the worse", 3.3, 3.8, _gate([(8, 8, name) for name in OF_8_PIXELS])),
)


def targets(machine: Machine) -> str:
    """Every target of CPUs: what was asked, what was measured, met or missed."""
    return verdicts(TARGETS, machine) if machine.of(kind="cpu") else ""


def unet(machine: Machine) -> str:
    """The U-Net: how an image's time changes with the batch and with the resolution, then every figure."""
    return "\n\n".join(filter(None, (_growth(machine), part(machine, "unet", "eager fp32"))))


def _growth(machine: Machine) -> str:
    """Milliseconds an image, a row a variant: batches at 32 pixels, then larger images, of the run that measured most."""
    lines = fullest(machine.of(kind="cpu", part="unet"))
    places = sorted({(record["pixels"], record["batch"]) for record in lines})
    cells = {(r["threads"], r["variant"], (r["pixels"], r["batch"])): 1e3 * r["median"] / r["batch"] for r in lines}
    rows = []
    for threads, variant in dict.fromkeys((record["threads"], record["variant"]) for record in lines):
        costs = [cells.get((threads, variant, place)) for place in places]
        rows.append((str(threads), variant, *("–" if value is None else _digits(value) for value in costs)))
    header = ("threads", "ms an image", *(f"batch {batch}, {pixels} px" for pixels, batch in places))
    return table(header, rows, left=(1,)) if rows else ""


def fullest(lines: Sequence[Record]) -> list[Record]:
    """Those of the run that has the most of them, the latest of equals."""
    runs = Counter((record["run"], record["machine"]) for record in lines)
    most = max(runs, key=lambda run: (runs[run], run), default=None)
    return [record for record in lines if (record["run"], record["machine"]) == most]


def part(machine: Machine, name: str, opponent: str) -> str:
    """A row a setting and variant, beside one opponent."""
    lines = machine.latest("case", "variant", kind="cpu", part=name)
    cases = list(dict.fromkeys(record["case"] for record in lines))
    rows = [_row(machine, record, opponent) for record in sorted(lines, key=lambda record: cases.index(record["case"]))]
    header = ("case", "batch", "px", "threads", "variant", "ms", "GFLOP/s", "of peak", f"to {opponent}", "error")
    return table(header, rows, left=(0, 4)) if rows else ""


def _row(machine: Machine, record: Record, opponent: str) -> tuple[str, ...]:
    median, spread = (1e3 * record[key] / record["steps"] for key in ("median", "spread"))
    where = {key: record[key] for key in ("part", "name", "batch", "pixels", "threads")}
    ratio = machine.times_as_fast(record["variant"], opponent, kind="cpu", **where)
    place = record["name"], *(str(record[key]) for key in ("batch", "pixels", "threads")), record["variant"]
    figures = f"{_digits(median)} ± {_digits(spread)}", f"{record['gflops']:.4g}", f"{100 * record['share']:.0f} %"
    return *place, *figures, "–" if ratio is None else f"{ratio.value:.2f}×", f"{record['error']:.1e}"


def _digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def memory(machine: Machine) -> str:
    """What the U-Net takes in each engine."""
    rows = []
    for record in machine.latest("name", "batch", "threads", "variant", kind="memory"):
        sizes = (f"{record[key] / 2**20:.0f}" for key in ("peak", "resident"))
        rows.append((record["name"], str(record["batch"]), str(record["threads"]), record["variant"], *sizes))
    header = ("network", "batch", "threads", "variant", "MiB at the peak", "MiB between calls")
    return table(header, rows, left=(0, 3)) if rows else ""


def host_work(machine: Machine) -> str:
    """A host's own work alone, and right after a U-Net."""
    rows = []
    for record in machine.latest("name", "host", "batch", "threads", kind="beside"):
        where = {key: record[key] for key in ("name", "host", "batch", "threads")}
        lines = machine.together(("nothing", EAGER[0], "engine"), kind="beside", by="after", **where)
        if lines:
            times = (" ± ".join(_digits(1e3 * line[key]) for key in ("median", "spread")) for line in lines)
            ratio = lines[2]["median"] / lines[0]["median"]
            rows.append((record["host"], str(record["batch"]), str(record["threads"]), *times, f"{ratio:.2f}×"))
    header = ("host's work", "U-Net's batch", "threads", "ms alone", "after eager", "after the engine", "engine to alone")
    return table(header, rows, left=(0,)) if rows else ""


def speed(results: Path) -> str:
    """One sentence: a guided step of one image on two threads, beside eager PyTorch, in the latest run that has both."""
    where = {"part": "step", "name": STEP, "batch": 1, "pixels": 32, "threads": 2}
    runs = []
    for machine in machines(results):
        lines = None if machine.on_gpu or HELD in machine.name else machine.together(("engine", *EAGER), kind="cpu", **where)
        if lines:
            runs.append((lines[0]["run"], machine, lines))
    if not runs:
        return "On CPUs the speed is not measured yet."
    run, machine, (ours, *eager) = max(runs, key=lambda item: item[0])
    ratio = Interval.least(map(Interval.of, eager)).over(Interval.of(ours))
    milliseconds = _digits(1e3 * ours["median"] / ours["steps"])
    return (
        f"On two threads of a CPU ({machine.says(run)}) one guided step of the CIFAR-10 DDPM with a WRN-28-10 guide takes "
        f"{milliseconds} ms for 1 image, {times_as_fast(ratio)} eager PyTorch in its better layout ({span_of(ratio)})."
    )


def _figure(tables: Callable[[Machine], str], results: Path) -> str:
    return by_machine(tables, results, on_gpu=False, otherwise=NOT_YET, kind="cpu")


FIGURES: dict[str, Callable[[Path], str]] = {
    "cpu-targets": partial(_figure, targets),
    "cpu-unet": partial(_figure, unet),
    "cpu-guides": partial(_figure, partial(part, name="guide", opponent="eager fp32")),
    "cpu-guided-step": partial(_figure, partial(part, name="step", opponent="eager fp32")),
    "cpu-layers": partial(_figure, partial(part, name="layers", opponent="oneDNN prepacked")),
    "cpu-memory": partial(_figure, memory),
    "cpu-beside": partial(_figure, host_work),
    "speed-cpu": speed,
}
