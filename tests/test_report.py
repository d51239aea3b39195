"""Tables from JSON lines: ratios within one run, targets met and missed, dry runs left out, one line where nothing is."""

from __future__ import annotations

import json

import pytest

from bench import figures, report

GPU, CPU = "A GPU", "a CPU, 2 threads"


@pytest.fixture
def results(tmp_path, monkeypatch):
    """An empty folder of results, and how to add a run to it."""
    monkeypatch.setitem(report.by_machine.__kwdefaults__, "results", tmp_path)
    monkeypatch.setattr(report.gpu_targets, "__defaults__", (tmp_path,))

    def add(day, *lines, machine=GPU, toy=False):
        about = {"machine": machine, "run": f"2030-01-{day:02}T00:00:00+00:00"}
        card = {**about, "kind": "machine", "device": "cuda" if machine == GPU else "cpu", "toy": toy}
        with (tmp_path / f"loop-{machine[0].lower()}.jsonl").open("a") as file:
            file.writelines(json.dumps(line) + "\n" for line in (card, *({**about, **line} for line in lines)))

    return add


def step(variant, seconds, batch=1, steps=10, network="ddpm-cifar10"):
    about = {"kind": "loop", "network": network, "guide": "resnet18", "batch": batch, "steps": steps, "variant": variant}
    timing = {"median": seconds * steps, "spread": 0.1 * seconds * steps, "flops": 10**12, "error": 1e-3}
    return {**about, "case": f"{network} + resnet18, batch {batch}, {steps} steps", **timing}


def verdicts() -> dict[str, list[str]]:
    rows = [line.strip("| ").split(" | ") for line in report.gpu_targets().splitlines() if line.startswith("|")]
    return {row[0]: row[3:] for row in rows[2:]}


def test_nothing_measured_is_one_line(results):
    for name in ("gpu-targets", "gpu-steps", "gpu-ops", "gpu-probe", "gpu-checks"):
        assert figures.FIGURES[name]() == report.NO_GPU and "\n" not in report.NO_GPU
    assert figures.FIGURES["ops"]() == figures.FIGURES["cpu-steps"]() == report.NO_CPU


def test_targets_are_met_missed_stretched_or_not_measured(results):
    results(
        1,
        step("engine graph", 0.7e-3), step("eager fp32", 4.55e-3),
        step("engine graph", 11e-3, 64), step("eager fp32", 33e-3, 64),
        step("engine graph", 7e-3, 256), step("eager fp32", 35e-3, 256),
    )  # fmt: skip
    found = verdicts()
    assert found["guided step against eager fp32, CIFAR, batch 1"] == ["6.5×", "met"]
    assert found["guided step against eager fp32, CIFAR, worse of batch 64, 256"] == ["3×", "**missed**"]
    assert found["DDPM + ResNet-18, a step at batch 1"] == ["0.7 ms", "met"]
    assert found["DDPM + ResNet-18, a step at batch 256"] == ["7 ms", "stretch reached"]
    assert found["against torch.compile max-autotune, CIFAR, batch 1"] == ["–", "not measured"]
    assert len(found) == len(report.TARGETS) + 1


def test_one_batch_of_two_is_no_figure_for_both(results):
    results(1, step("engine graph", 1e-3, 64), step("eager fp32", 9e-3, 64))
    assert verdicts()["guided step against eager fp32, CIFAR, worse of batch 64, 256"] == ["–", "not measured"]


def test_ratios_are_taken_within_one_run_and_from_the_latest_that_has_both(results):
    results(1, step("engine graph", 1e-3), step("eager fp32", 7e-3))
    results(2, step("engine graph", 2e-3), step("eager fp32", 16e-3))
    results(3, step("engine graph", 0.1e-3))
    assert verdicts()["guided step against eager fp32, CIFAR, batch 1"] == ["8×", "met"]


def test_a_share_of_the_copy_is_the_worst_of_the_large_norms(results):
    norm = {"kind": "op", "op": "group_norm_silu", "engine": "triton", "cache": "cold", "median": 1e-4, "spread": 1e-6}
    shares = {"small": (1e6, 0.1), "large": (7e7, 0.8), "larger": (3e8, 0.9)}
    results(1, *({**norm, "case": case, "bytes": size, "roofline": share} for case, (size, share) in shares.items()))
    assert verdicts()["GroupNorm + SiLU of at least 64 MB, share of the copy's rate, the worst"] == ["80 %", "met"]
    assert "| small | triton | cold | 100.0 µs | 1.0 µs | 10 % |" in report.gpu_ops()


def test_dry_runs_and_other_machines_stay_out(results):
    results(1, step("engine graph", 1e-9), step("eager fp32", 1.0), toy=True)
    results(2, step("engine loop", 1e-3), step("eager fp32", 2e-3), machine=CPU)
    assert report.gpu_targets() == report.NO_GPU
    assert "engine loop | 1 ± 0.1 |" in report.cpu_steps() and "2.00×" in report.cpu_steps()


def test_checks_that_fail_are_named(results):
    wrong = {"kind": "check", "check": "philox triton", "ok": False, "says": "words differ"}
    results(1, wrong, {"kind": "check", "check": "b", "ok": True})
    assert "1 of 2 checks hold.\n- philox triton: words differ" in report.gpu_checks()
    results(2, {**wrong, "ok": True, "says": "agree"})
    assert "2 of 2 checks hold." in report.gpu_checks()


def test_what_the_machine_can_do_is_listed(results):
    results(
        1,
        {"kind": "ceilings", "copy": 3e12, "matmul bfloat16": 7.9e14},
        {"kind": "gap", "how": "graph", "seconds_per_kernel": 1.2e-6},
        {"kind": "convs", "network": "n", "batch": 64, "how": "bf16", "seconds": 2e-3, "flops": 10**12},
        {"kind": "kernels", "network": "n", "variant": "eager fp32", "count": 470},
    )
    text = report.gpu_probe()
    for row in ("| copy | 3 T/s |", "| matmul bfloat16 | 790 T/s |", "1.20 µs |", "| 2 ms, 500 TFLOP/s |", "eager fp32 | 470 |"):
        assert row in text
