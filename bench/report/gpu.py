"""The targets of GPUs and what was reached, also said at the end of `make gpu`; and the README's sentence on GPUs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bench.report.lines import Interval, Machine, Record, machines
from bench.report.sentences import listed, span_of, times_as_fast
from bench.report.tables import on_device
from bench.report.targets import Target, shown, verdicts

LARGE = 64e6  # bytes from which a norm must come near the copy's rate
COMPILED = "torch.compile"


def _against(opponent: str, network: str, *batches: int) -> Callable[[Machine], Interval | None]:
    """The worst ratio over the batches, by step; None where one of them is not measured."""

    def ratio(machine: Machine) -> Interval | None:
        about = {"network": network, "guide": "resnet18"}
        steps = {record["steps"] for record in machine.of(kind="loop", **about)} - {100}
        ratios = [[machine.times_as_fast("engine graph", opponent, **about, batch=b, steps=s) for s in steps] for b in batches]
        known = [[value for value in of_batch if value is not None] for of_batch in ratios]
        return Interval.least(value for of_batch in known for value in of_batch) if all(known) else None

    return ratio


def _milliseconds(batch: int) -> Callable[[Machine], Interval | None]:
    def step(machine: Machine) -> Interval | None:
        lines = machine.together(("engine graph",), network="ddpm-cifar10", guide="resnet18", batch=batch, steps=10)
        return Interval.of(lines[0]).times(1e3 / lines[0]["steps"]) if lines else None

    return step


def _norm_share(machine: Machine) -> Interval | None:
    lines = machine.latest("case", kind="op", op="group_norm_silu", engine="triton", cache="cold")
    shares = [_share(line) for line in lines if line["bytes"] >= LARGE]
    return Interval.least(shares) if shares else None


def _share(line: Record) -> Interval:
    """Percent of the roofline."""
    least = line["roofline"] * line["median"]
    return Interval(least, least, least).over(Interval.of(line)).times(100)


def _whole(machine: Machine) -> Interval | None:
    return machine.times_as_fast("engine graph", "naive loop", network="ddpm-cifar10", guide="resnet18", batch=64, steps=100)


CIFAR, IMAGENET = "ddpm-cifar10", "adm-imagenet256"
TARGETS = (
    Target("guided step against eager fp32, CIFAR, batch 1", 6, 9, _against("eager fp32", CIFAR, 1)),
    Target("guided step against eager fp32, ADM, batch 1", 4, 5, _against("eager fp32", IMAGENET, 1)),
    Target("guided step against eager fp32, CIFAR, worse of batch 64, 256", 3.5, 4.5, _against("eager fp32", CIFAR, 64, 256)),
    Target("against torch.compile max-autotune, CIFAR, batch 1", 1.35, 1.75, _against("torch.compile", CIFAR, 1)),
    Target("against torch.compile max-autotune, ADM, batch 1", 1.15, 1.3, _against("torch.compile", IMAGENET, 1)),
    Target("against torch.compile, CIFAR, batch 64", 1.1, 1.25, _against("torch.compile", CIFAR, 64)),
    Target("DDPM + ResNet-18, a step at batch 1", 0.75, 0.6, _milliseconds(1), "ms"),
    Target("DDPM + ResNet-18, a step at batch 256", 10, 8, _milliseconds(256), "ms"),
    Target("GroupNorm + SiLU of at least 64 MB, share of the copy's rate, the worst", 75, 85, _norm_share, "%"),
)
# The target of 30 to 100 is for equal robust accuracy, with the steps that guidance saves; this is the part at the same steps.
WHOLE = "whole purification of 100 steps against the naive loop, batch 64, at the same steps"


def gpu_targets(results: Path) -> str:
    """Every target: what was asked, what was measured, met or missed."""

    def targets(machine: Machine) -> str:
        whole = _whole(machine)
        last = (WHOLE, "–", "–", *(("–", "not measured") if whole is None else (shown(whole.value, "×"), "measured")))
        return verdicts(TARGETS, machine, [last])

    return on_device(targets, results, on_gpu=True)


def speed(results: Path) -> str:
    """One sentence: a guided step of one image and of the largest batch, beside the fastest opponent in each."""
    measured = [(machine, run) for machine in machines(results) if machine.on_gpu and (run := _latest_run(machine))]
    if not measured:
        return "On GPUs the speed is not measured yet."
    machine, run = max(measured, key=lambda item: item[1][0]["run"])
    batches = {record["batch"] for record in run}
    parts = [_at(batch, {r["variant"]: r for r in run if r["batch"] == batch}) for batch in sorted({min(batches), max(batches)})]
    where = f"On a GPU ({machine.says(run[0]['run'])})"
    compiled = "" if any(record["variant"] == COMPILED for record in run) else f" {COMPILED} is not measured there yet."
    return f"{where} one guided step of the CIFAR-10 DDPM with a ResNet-18 guide takes {listed(parts)}.{compiled}"


def _latest_run(machine: Machine) -> list[Record]:
    """The lines of ten steps of the latest run that has the engine and opponents."""
    lines = machine.of(kind="loop", network=CIFAR, guide="resnet18", steps=10)
    runs = [record["run"] for record in lines if record["variant"] == "engine graph"]
    return [record for record in lines if record["run"] == max(runs)] if runs else []


def _at(batch: int, variants: dict[str, Record]) -> str:
    """The time of a step at a batch, and how it compares with the fastest of the others."""
    ours = variants["engine graph"]
    opponents = [record for name, record in variants.items() if not name.startswith("engine")]
    images = "1 image" if batch == 1 else f"{batch} images"
    text = f"{shown(1e3 * ours['median'] / ours['steps'], 'ms')} for {images}"
    if not opponents:
        return text
    best = min(opponents, key=lambda record: record["median"])
    ratio = Interval.of(best).over(Interval.of(ours))
    return f"{text}, {times_as_fast(ratio)} {best['variant']} ({span_of(ratio)})"
