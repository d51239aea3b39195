"""Tables and verdicts from JSON lines: ratios within one run, intervals, dry runs left out, one line where nothing is."""

from __future__ import annotations

import json

import pytest

from bench.report import figures, gpu, tables
from bench.report.lines import Interval, Machine
from bench.report.targets import Target

GPU, CPU = "A GPU", "a CPU, 2 threads"


@pytest.fixture
def results(tmp_path):
    """How to add a run to an empty folder of results."""

    def add(day, *lines, machine=GPU, toy=False, commit=None):
        about = {"machine": machine, "run": f"2030-01-{day:02}T00:00:00+00:00"}
        card = {**about, "kind": "machine", "device": "cuda" if machine == GPU else "cpu", "toy": toy, "commit": commit}
        with (tmp_path / f"loop-{machine[0].lower()}.jsonl").open("a") as file:
            file.writelines(json.dumps(line) + "\n" for line in (card, *({**about, **line} for line in lines)))

    return add


@pytest.fixture
def block(tmp_path):
    """A generated block of what was added."""
    return lambda name: figures.FIGURES[name](tmp_path)


@pytest.fixture
def verdicts(block):
    """The measured figure and the verdict of every target."""

    def read() -> dict[str, list[str]]:
        rows = [line.strip("| ").split(" | ") for line in block("gpu-targets").splitlines() if line.startswith("|")]
        return {row[0]: row[3:5] for row in rows[2:]}

    return read


def quartiles(median, spread=0.0):
    """A median with quartiles at equal distances."""
    return {"median": median, "q25": median - spread / 2, "q75": median + spread / 2, "spread": spread}


def step(variant, seconds, batch=1, steps=10, network="ddpm-cifar10", spread=0.0):
    about = {"kind": "loop", "network": network, "guide": "resnet18", "batch": batch, "steps": steps, "variant": variant}
    timing = {**quartiles(seconds * steps, spread * seconds * steps), "flops": 10**12, "error": 1e-3}
    return {**about, "case": f"{network} + resnet18, batch {batch}, {steps} steps", **timing}


def test_nothing_measured_is_one_line(block):
    for name in ("gpu-targets", "gpu-steps", "gpu-ops", "gpu-probe", "gpu-checks"):
        assert block(name) == tables.NO_GPU and "\n" not in tables.NO_GPU
    assert block("ops") == block("cpu-steps") == tables.NO_CPU
    assert block("speed-gpu") == "On GPUs the speed is not measured yet."


def test_targets_are_met_missed_stretched_or_not_measured(results, verdicts):
    results(
        1,
        step("engine graph", 1e-3), step("eager fp32", 17e-3),
        step("engine graph", 11e-3, 64), step("eager fp32", 33e-3, 64),
        step("engine graph", 7e-3, 256), step("eager fp32", 35e-3, 256),
    )  # fmt: skip
    found = verdicts()
    assert found["step against eager fp32, batch 1"] == ["17× (17 to 17×)", "met"]
    assert found["step against eager fp32, batch 64"] == ["3× (3 to 3×)", "**missed**"]
    assert found["DDPM + ResNet-18, a step at batch 1"] == ["1 ms (1 to 1 ms)", "met"]
    assert found["DDPM + ResNet-18, a step at batch 256"] == ["7 ms (7 to 7 ms)", "stretch reached"]
    assert found["step against the fastest of torch.compile's modes, batch 1"] == ["–", "not measured"]
    assert len(found) == len(gpu.TARGETS) + 2


def test_a_figure_stands_with_the_commit_that_it_is_of(results, block):
    results(1, step("engine graph", 2e-3), step("eager fp32", 32e-3), commit="older")
    results(2, step("engine graph", 1e-3), commit="newer")
    rows = {row.split(" | ")[0].strip("| "): row.split(" | ")[-1].strip("| ") for row in block("gpu-targets").splitlines()}
    assert rows["step against eager fp32, batch 1"] == "older" and rows["DDPM + ResNet-18, a step at batch 1"] == "newer"
    assert rows["DDPM + ResNet-18, a step at batch 64"] == "–"


def test_tables_of_gpus_are_of_one_commit_each_the_last_measured_first(results, block):
    results(1, step("engine graph", 2e-3), step("eager fp32", 32e-3), commit="older")
    results(2, step("engine graph", 1e-3), commit="newer")
    newer, older = block("gpu-steps").split("A GPU, 2030-01-01, commit older:")
    assert newer.startswith("A GPU, 2030-01-02, commit newer:") and "| eager fp32 |" not in newer
    assert "| eager fp32 |" in older and "| 2 ± 0 |" in older


def test_a_compiler_left_out_is_none_beaten_and_the_fastest_counts(results, verdicts):
    fastest = "step against the fastest of torch.compile's modes, batch 64"
    tuned, plain = gpu.COMPILERS
    results(1, step("engine graph", 1e-3, 64), step(tuned, 1.3e-3, 64))
    assert verdicts()[fastest] == ["–", "not measured"]
    results(2, step("engine graph", 2e-3, 64), step(plain, 2.3e-3, 64))  # each in a process, and a run, of its own
    assert verdicts()[fastest] == ["1.15× (1.15 to 1.15×)", "met"]


def test_a_step_may_be_timed_beside_switches_too(results, verdicts):
    results(1, step("engine graph", 3e-3, 64))
    beside = step("all on", 2e-3, 64) | {"kind": "switch"}
    results(2, beside | {"measure": "whole"}, beside | {"measure": "single", "median": 1.0})
    assert verdicts()["DDPM + ResNet-18, a step at batch 64"] == ["2 ms (2 to 2 ms)", "stretch reached"]


def test_ratios_are_taken_within_one_run_and_from_the_latest_that_has_both(results, verdicts):
    results(1, step("engine graph", 1e-3), step("eager fp32", 7e-3))
    results(2, step("engine graph", 2e-3), step("eager fp32", 36e-3))
    results(3, step("engine graph", 0.1e-3))
    assert verdicts()["step against eager fp32, batch 1"] == ["18× (18 to 18×)", "met"]


def test_only_a_start_with_kernels_compiled_before_counts(results, verdicts):
    start = {"kind": "cold start", "batch": 64}
    wait = "from a cold process with kernels cached to the first purified batch of 64"
    results(1, {**start, "compiled": 3, "wait": 90.0})
    assert verdicts()[wait] == ["–", "not measured"]
    results(2, {**start, "compiled": 0, "wait": 12.0}, {**start, "compiled": 3, "wait": 90.0})
    assert verdicts()[wait] == ["12 s (12 to 12 s)", "met"]


def test_the_gradient_is_held_to_pytorchs_own_operations(results, verdicts):
    def timed(name, seconds):
        about = {"kind": "switch", "measure": "gradient", "network": "ddpm-cifar10", "batch": 64}
        return {**about, "variant": name, **quartiles(seconds)}

    results(1, timed("gradient, all on", 1.0), timed("gradient, all off", 2.0), timed("gradient, PyTorch's operations", 3.0))
    assert verdicts()["captured step of the exact gradient against PyTorch's own, batch 64"] == ["3× (3 to 3×)", "met"]


def test_a_share_of_the_copy_is_the_worst_of_the_large_norms(results, verdicts, block):
    norm = {"kind": "op", "op": "group_norm_silu", "engine": "triton", "cache": "cold", **quartiles(1e-4, 1e-6)}
    shares = {"small": (1e6, 0.1), "large": (7e7, 0.8), "larger": (3e8, 0.9)}
    results(1, *({**norm, "case": case, "bytes": size, "roofline": share} for case, (size, share) in shares.items()))
    worst = "GroupNorm + SiLU of at least 64 MB, share of the copy's rate, the worst"
    assert verdicts()[worst] == ["80 % (79.6 to 80.4 %)", "met"]
    assert "| small | triton | cold | 100.0 µs | 1.0 µs | 10 % |" in block("gpu-ops")


def test_dry_runs_and_other_machines_stay_out(results, block):
    results(1, step("engine graph", 1e-9), step("eager fp32", 1.0), toy=True)
    results(2, step("engine loop", 1e-3, spread=0.1), step("eager fp32", 2e-3), machine=CPU)
    assert block("gpu-targets") == tables.NO_GPU
    assert "engine loop | 1 ± 0.1 |" in block("cpu-steps") and "2.00×" in block("cpu-steps")


def test_checks_that_fail_are_named(results, block):
    wrong = {"kind": "check", "check": "philox triton", "ok": False, "says": "words differ"}
    results(1, wrong, {"kind": "check", "check": "b", "ok": True})
    assert "1 of 2 checks hold.\n- philox triton: words differ" in block("gpu-checks")
    results(2, {**wrong, "ok": True, "says": "agree"})
    assert "2 of 2 checks hold." in block("gpu-checks")


def test_what_the_machine_can_do_is_listed(results, block):
    results(
        1,
        {"kind": "ceilings", "copy": 3e12, "matmul bfloat16": 7.9e14},
        {"kind": "gap", "how": "graph", "seconds_per_kernel": 1.2e-6},
        {"kind": "convs", "network": "n", "batch": 64, "how": "bf16", "seconds": 2e-3, "flops": 10**12},
        {"kind": "kernels", "network": "n", "variant": "eager fp32", "count": 470},
    )
    text = block("gpu-probe")
    for row in ("| copy | 3 T/s |", "| matmul bfloat16 | 790 T/s |", "1.20 µs |", "| 2 ms, 500 TFLOP/s |", "eager fp32 | 470 |"):
        assert row in text


# Verdicts


def target(low, value, high, unit="×"):
    """The verdict on a target of 2 and 3, or of 3 and 2 ms, for a measured interval."""
    must, stretch = (3, 2) if unit == "ms" else (2, 3)
    return Target("", must, stretch, lambda _: Interval(value, low, high), unit).verdict(Machine("", True, ()))[1]


@pytest.mark.parametrize(
    ("interval", "says"),
    [
        ((3.0, 3.5, 4.0), "stretch reached"),
        ((2.9, 3.5, 4.0), "met, stretch not decided"),
        ((2.0, 2.5, 2.9), "met"),
        ((1.9, 2.5, 2.9), "not decided: 1.9 to 2.9×"),
        ((1.9, 3.5, 9.0), "not decided: 1.9 to 9×"),  # the median reaches the stretch, and that decides nothing
        ((1.0, 1.9, 2.0), "not decided: 1 to 2×"),
        ((1.0, 1.5, 1.99), "**missed**"),
    ],
)
def test_a_verdict_needs_the_whole_interval(interval, says):
    assert target(*interval) == says


@pytest.mark.parametrize(
    ("interval", "says"),
    [
        ((1.0, 1.5, 2.0), "stretch reached"),
        ((1.5, 1.9, 2.5), "met, stretch not decided"),
        ((2.1, 2.5, 3.0), "met"),
        ((2.5, 2.9, 3.1), "not decided: 2.5 to 3.1 ms"),
        ((3.1, 3.2, 3.3), "**missed**"),
    ],
)
def test_of_milliseconds_fewer_are_better(interval, says):
    assert target(*interval, unit="ms") == says


def test_a_ratio_is_lowest_where_ours_is_slow_and_theirs_is_fast():
    ratio = Interval(20, 16, 30).over(Interval(10, 8, 16))
    assert (ratio.value, ratio.low, ratio.high) == (2, 1, 3.75)


def test_the_least_of_intervals_may_be_any_of_them():
    assert Interval.least([Interval(2, 1.5, 4), Interval(2.5, 1, 3)]) == Interval(2, 1, 3)


def test_a_median_that_reaches_a_target_with_wide_quartiles_decides_nothing(results, verdicts):
    results(1, step("engine graph", 1e-3, spread=0.8), step("eager fp32", 25e-3))
    figure, verdict = verdicts()["step against eager fp32, batch 1"]
    assert (figure, verdict) == ("25× (17.9 to 41.7×)", "met, stretch not decided")
    results(2, step("engine graph", 1e-3, spread=1.6), step("eager fp32", 25e-3))
    assert verdicts()["step against eager fp32, batch 1"][1] == "not decided: 13.9 to 125×"


# The README's sentence


def test_the_sentence_on_gpus_names_the_fastest_opponent_the_day_and_the_commit(results, block):
    eager = "eager bf16 channels_last"
    first = [step("engine graph", 2e-3), step("eager fp32", 9e-3), step(eager, 8e-3), step("engine loop", 1e-3)]
    results(1, *first, step("engine graph", 10e-3, 64), step(eager, 20e-3, 64), commit="abc1234")
    assert block("speed-gpu") == (
        "On a GPU (A GPU, 2030-01-01, commit abc1234) one guided step of the CIFAR-10 DDPM with a ResNet-18 guide takes "
        "2 ms for 1 image, 4.0 times as fast as eager bf16 channels_last (4.0 to 4.0); and "
        "10 ms for 64 images, 2.0 times as fast as eager bf16 channels_last (2.0 to 2.0). "
        "torch.compile is not measured there yet."
    )
    results(2, step("engine graph", 2e-3, spread=0.5), step("torch.compile", 2.1e-3))
    assert block("speed-gpu").endswith("takes 2 ms for 1 image, not told apart from torch.compile (0.8 to 1.4).")
    results(3, step("engine graph", 4e-3), step("torch.compile", 2e-3))
    assert "2.0 times as slow as torch.compile" in block("speed-gpu")
