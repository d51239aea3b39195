"""The targets of GPUs and what was reached, also said at the end of `make gpu`; and the README's sentence on GPUs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from bench.core.compiler_modes import MODES, NAME
from bench.report.lines import Interval, Machine, Record, machines
from bench.report.sentences import listed, span_of, times_as_fast
from bench.report.tables import on_device
from bench.report.targets import Target, shown, verdicts

LARGE = 64e6  # bytes from which what only moves them must come near the copy's rate
CIFAR, IMAGENET = "ddpm-cifar10", "adm-imagenet256"
ENGINE, OURS = "engine graph", "all on"  # what the engine is called beside opponents, and beside its own switches
COMPILERS = tuple(f"{NAME} {mode}" for mode in MODES)
DIFFPURE = "DiffPure's loop, unguided, 100 steps"

Measured = Callable[[Machine], Interval | None]


def step_lines(machine: Machine, batch: int) -> list[Record]:
    """The engine's steps of the DDPM of CIFAR-10 with a ResNet-18, oldest run first, from both commands that time them."""
    about = {"network": CIFAR, "guide": "resnet18", "batch": batch, "steps": 10}
    beside_switches = machine.of(kind="switch", variant=OURS, measure="whole", **about)
    return sorted([*machine.of(kind="loop", variant=ENGINE, **about), *beside_switches], key=lambda line: line["run"])


def _milliseconds(batch: int) -> Measured:
    def step(machine: Machine) -> Interval | None:
        lines = step_lines(machine, batch)
        return Interval.of(lines[-1]).times(1e3 / lines[-1]["steps"]) if lines else None

    return step


def _against(opponents: Iterable[str], network: str, batch: int, steps: int = 10) -> Measured:
    """To the fastest of `opponents`, all of them measured: one left out is none beaten."""

    def ratio(machine: Machine) -> Interval | None:
        about = {"network": network, "guide": "resnet18", "batch": batch, "steps": steps}
        ratios = [machine.times_as_fast(ENGINE, opponent, **about) for opponent in opponents]
        known = [value for value in ratios if value is not None]
        return Interval.least(known) if len(known) == len(ratios) else None

    return ratio


def _share(*ops: str) -> Measured:
    """Percent of the copy's rate, the worst of what moves much in 16 bits or is the update of float32 images."""

    def worst(machine: Machine) -> Interval | None:
        lines = [line for op in ops for line in machine.latest("case", kind="op", op=op, engine="triton", cache="cold")]
        shares = [_of_roofline(line) for line in lines if line["bytes"] >= LARGE]
        return Interval.least(shares) if shares else None

    return worst


def _of_roofline(line: Record) -> Interval:
    least = line["roofline"] * line["median"]
    return Interval(least, least, least).over(Interval.of(line)).times(100)


def _cold_start(machine: Machine) -> Interval | None:
    lines = machine.of(kind="cold start", batch=64, compiled=0)
    return Interval(*3 * [lines[-1]["wait"]], run=lines[-1]["run"]) if lines else None


def _gradient(machine: Machine) -> Interval | None:
    about = {"kind": "switch", "measure": "gradient", "network": CIFAR, "batch": 64}
    return machine.times_as_fast("gradient, all on", "gradient, PyTorch's operations", **about)


NORMS, PASSES = ("group_norm_silu", "sum_norm_silu"), ("residual_sum", "guided_step")
FP32, BF16 = ("eager fp32",), ("eager bf16 channels_last",)
FASTEST = "step against the fastest of torch.compile's modes, batch"
TARGETS = (
    Target("DDPM + ResNet-18, a step at batch 256", 9.5, 8.5, _milliseconds(256), "ms"),
    Target("DDPM + ResNet-18, a step at batch 64", 2.9, 2.5, _milliseconds(64), "ms"),
    Target("DDPM + ResNet-18, a step at batch 1", 1.2, 0.75, _milliseconds(1), "ms"),
    Target(f"{FASTEST} 256", 1.1, 1.25, _against(COMPILERS, CIFAR, 256)),
    Target(f"{FASTEST} 64", 1.1, 1.25, _against(COMPILERS, CIFAR, 64)),
    Target(f"{FASTEST} 1", 1.35, 1.75, _against(COMPILERS, CIFAR, 1)),
    Target("step against eager fp32, batch 1", 16, 25, _against(FP32, CIFAR, 1)),
    Target("step against eager fp32, batch 64", 6, 7, _against(FP32, CIFAR, 64)),
    Target("step against eager fp32, batch 256", 4, 4.7, _against(FP32, CIFAR, 256)),
    Target("GroupNorm + SiLU of at least 64 MB, share of the copy's rate, the worst", 70, 90, _share(*NORMS), "%"),
    Target("sums and updates of at least 64 MB, share of the copy's rate, the worst", 90, 97, _share(*PASSES), "%"),
    Target("from a cold process with kernels cached to the first purified batch of 64", 20, 10, _cold_start, "s"),
    Target("step of ADM at 256 pixels against eager bf16, batch 8", 1.8, 2.5, _against(BF16, IMAGENET, 8, 2)),
    Target("captured step of the exact gradient against PyTorch's own, batch 64", 2.5, 4, _gradient),
)


def gpu_targets(results: Path) -> str:
    """Every target: what was asked, what was measured, met or missed; then whole purifications, which have no target."""

    def targets(machine: Machine) -> str:
        return verdicts(TARGETS, machine, [_whole(machine, steps) for steps in (100, 10)], dated=True)

    return on_device(targets, results, on_gpu=True, by_commit=False)


def _whole(machine: Machine, steps: int) -> tuple[str, ...]:
    pair = machine.together((f"engine, guided, {steps} steps", DIFFPURE), kind="whole")
    says = f"whole purification of {steps} steps against DiffPure's own loop of 100, batch 64"
    if pair is None:
        return says, "–", "–", "–", "not measured", "–"
    ratio = Interval.of(pair[1]).over(Interval.of(pair[0]))
    return says, "–", "–", f"{shown(ratio.value, '×')} ({span_of(ratio)})", "measured", machine.when(ratio.run)


def speed(results: Path) -> str:
    """One sentence: a guided step of one image and of the largest batch, beside the fastest opponent in each."""
    measured = [(machine, lines) for machine in machines(results) if machine.on_gpu and (lines := _latest(machine))]
    if not measured:
        return "On GPUs the speed is not measured yet."
    machine, lines = max(measured, key=lambda item: item[1][-1]["run"])
    batches = {line["batch"] for line in lines if line["variant"] == ENGINE}
    parts = [_at(machine, batch, lines) for batch in sorted({min(batches), max(batches)})]
    where = f"On a GPU ({machine.says(lines[-1]['run'])})"
    compiled = "" if any(line["variant"].startswith(NAME) for line in lines) else f" {NAME} is not measured there yet."
    return f"{where} one guided step of the CIFAR-10 DDPM with a ResNet-18 guide takes {listed(parts)}.{compiled}"


def _latest(machine: Machine) -> list[Record]:
    """The lines of ten steps of the commit that was measured last, in the order of their runs."""
    lines = machine.of(kind="loop", network=CIFAR, guide="resnet18", steps=10)
    commits = {line["run"]: machine.commit(line["run"]) for line in lines}
    runs = [line["run"] for line in lines if line["variant"] == ENGINE]
    return [line for line in lines if commits[line["run"]] == commits[max(runs)]] if runs else []


def _at(machine: Machine, batch: int, lines: list[Record]) -> str:
    """The time of a step at a batch, and how it compares with the fastest of the others, each within its own run."""
    of_batch = [line for line in lines if line["batch"] == batch]
    ours = [line for line in of_batch if line["variant"] == ENGINE][-1]
    images = "1 image" if batch == 1 else f"{batch} images"
    text = f"{shown(1e3 * ours['median'] / ours['steps'], 'ms')} for {images}"
    about = {"network": CIFAR, "guide": "resnet18", "batch": batch, "steps": 10}
    others = dict.fromkeys(line["variant"] for line in of_batch if not line["variant"].startswith("engine"))
    ratios = {name: ratio for name in others if (ratio := machine.times_as_fast(ENGINE, name, **about))}
    if not ratios:
        return text
    best = min(ratios, key=lambda name: ratios[name].value)
    return f"{text}, {times_as_fast(ratios[best])} {best} ({span_of(ratios[best])})"


FIGURES: dict[str, Callable[[Path], str]] = {"gpu-targets": gpu_targets, "speed-gpu": speed}
