"""The benchmark of CPUs: a dry run through its code, wrong variants found, who is absent said, tables from lines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bench import bench_cpu, cpu_peers, cpu_subjects, figures, report, report_cpu, tune_cpu
from bench.bench_cpu import HONEST
from bench.cpu_subjects import Setting, Subject, Variant
from bench.run import begin, parser
from purify_engine.benchmark.harness import read_records
from purify_engine.ops import cpp

ROOT = Path(__file__).parent.parent
UNET, STEP = report_cpu.UNET, report_cpu.STEP
EAGER = {"eager fp32", "eager channels_last"}


@pytest.fixture
def run(tmp_path):
    return begin("cpu", parser("d."), ["--toy", "--results", str(tmp_path)])[0]


def lines(run, kind):
    return [line for line in read_records([run.records.path]) if line["kind"] == kind]


# Dry runs


@pytest.mark.parametrize(
    ("part", "variants"),
    [
        ("unet", {*EAGER, "engine", "engine loop"}),
        ("guide", {*EAGER, "engine", "engine loop"}),
        ("step", {*EAGER, "naive loop", "engine", "engine loop"}),
        ("layers", {HONEST, "oneDNN prepacked", "engine"}),
    ],
)
def test_every_part_runs_at_toy_size(part, variants, tmp_path, monkeypatch):
    monkeypatch.setattr(bench_cpu, "toys", lambda found, toys=bench_cpu.toys: list(toys(found))[:1])
    only = [*variants - {HONEST}]
    threads = torch.get_num_threads()
    status = bench_cpu.main(["--toy", "--part", part, "--threads", "1", "--results", str(tmp_path), "--variant", *only])
    found = read_records(sorted(tmp_path.glob("cpu-*.jsonl")))
    told = [line for line in found if line["kind"] == "cpu"]
    assert status == 0 and {line["variant"] for line in told} == variants
    assert all(line["part"] == part and line["threads"] == 1 and line["median"] > 0 and line["share"] > 0 for line in told)
    assert all(line["cache"] == ("cold" if part == "layers" else "warm") for line in told)
    checks = [line for line in found if line["kind"] == "check"]
    assert len(checks) == len(variants) and all(check["ok"] for check in checks)
    assert torch.get_num_threads() == threads


def test_a_gradient_says_who_has_none(run):
    asked = cpu_subjects.subject(Setting("guide", "resnet18, d/dx", 1, 8), toy=True)
    bench_cpu.measure(run, Setting("guide", "resnet18, d/dx", 1, 8), asked, only=[])
    told = {line["name"].rsplit(": ")[-1]: line["says"] for line in lines(run, "note")}
    assert told == dict.fromkeys(("ONNX Runtime", "OpenVINO"), cpu_peers.NO_BACKWARD)


def test_the_first_to_be_measured_are_those_of_the_targets():
    chosen = parser("d.").parse_args([])
    chosen.part, chosen.batch = list(bench_cpu.PARTS), None
    command = type("Run", (), {"toy": False})()
    asked = list(bench_cpu.settings(command, 2, chosen))
    places = {(setting.part, setting.batch, setting.pixels, setting.name) for setting in asked}
    assert {("layers", *place) for place in report_cpu.FROM_16_PIXELS} <= places
    assert {("layers", batch, 8, name) for batch in (1, 8) for name in report_cpu.OF_8_PIXELS} <= places
    assert {(part, batch, 32, name) for part, name in (("unet", UNET), ("step", STEP)) for batch in (1, 8)} <= places
    assert [str(setting) for setting in asked[:2]] == [f"unet {UNET}, batch {batch}, 32 px, 2 threads" for batch in (1, 8)]


def test_peers_are_on_the_same_function_where_they_are_installed():
    asked = cpu_subjects.subject(Setting("unet", UNET, 2, 8), toy=True)
    with torch.no_grad():
        truth = asked.truth()
        for name in ("ONNX Runtime", "OpenVINO"):
            try:
                call = asked.makers[name]().call
            except cpu_peers.AbsentError:
                continue
            assert cpu_subjects.relative_error(call().double(), truth) < 1e-5


# Faults that must be found


def subject(**results):
    """A subject whose variants give these tensors."""
    made = {name: (lambda value=value: Variant(lambda: value, lambda: value)) for name, value in results.items()}
    return Subject({HONEST: made.pop("eager"), **made}, lambda: torch.ones(4, dtype=torch.float64), 8)


def test_a_variant_that_is_wrong_is_a_failed_check_and_is_not_timed(run):
    wrong = {"engine": torch.full((4,), 1 + 5e-6), "OpenVINO": torch.full((4,), 1 + 5e-6), "ONNX Runtime": torch.ones(3)}
    asked = subject(eager=torch.full((4,), 1 + 1e-6), nan=torch.full((4,), float("nan")), **wrong)
    bench_cpu.measure(run, Setting("unet", "fake", 1, 8), asked)
    assert [name.rsplit(": ")[-1] for name in run.failed] == ["nan", "engine", "ONNX Runtime"]  # 5 x is fair for an opponent only
    assert {line["variant"] for line in lines(run, "cpu")} == {HONEST, "OpenVINO"}
    assert run.close() == 1


def test_one_that_breaks_or_is_absent_stops_nobody_else(run, monkeypatch):
    asked = subject(eager=torch.ones(4), engine=torch.ones(4))

    def breaks():
        raise RuntimeError("no such layer")

    monkeypatch.setattr(cpu_peers.importlib.util, "find_spec", lambda name: None)
    asked.makers |= {"broken": breaks, "OpenVINO": lambda: cpu_peers.openvino(torch.nn.Identity(), (torch.ones(4),))}
    bench_cpu.measure(run, Setting("unet", "fake", 1, 8), asked)
    assert {line["variant"] for line in lines(run, "cpu")} == {HONEST, "engine"}
    assert [line["says"] for line in lines(run, "check") if not line["ok"]] == ["RuntimeError: no such layer"]
    assert [line["says"] for line in lines(run, "note")] == ["not measured: openvino is not installed here"]


def test_a_cold_call_comes_after_the_flush():
    seen = []
    clock = cpu_subjects.ColdClock(torch.ones(4), flush=64)
    for _ in range(2):
        clock(lambda: seen.append(float(clock.flush[0])) or torch.ones(4))
    assert seen == [1, 2] and clock.result.shape == (4,)


def test_memory_is_what_a_network_holds():
    before = bench_cpu._settled()
    kept = torch.ones(2**23)
    assert 0.9 * 2**25 < bench_cpu._settled() - before < 1.3 * 2**25
    assert bench_cpu._status("VmHWM") >= bench_cpu._status("VmRSS") > kept.nbytes


@pytest.mark.slow
def test_memory_is_measured_in_a_process_of_its_own(tmp_path):
    words = ["--toy", "--part", "memory", "--threads", "1", "--variant", "engine", "--results", str(tmp_path)]
    assert bench_cpu.main(words) == 0
    found = [line for line in read_records(sorted(tmp_path.glob("*.jsonl"))) if line["kind"] == "memory"]
    assert [(line["batch"], line["variant"]) for line in found] == [(1, HONEST), (1, "engine"), (2, HONEST), (2, "engine")]
    assert all(line["peak"] >= line["resident"] for line in found)


# Tables


@pytest.fixture
def results(tmp_path, monkeypatch):
    """An empty folder of results, and how to add a run to it."""
    folder = tmp_path / "results"
    folder.mkdir()
    monkeypatch.setitem(report.by_machine.__kwdefaults__, "results", folder)

    def add(day, *records):
        about = {"machine": "a CPU, 2 threads", "run": f"2030-01-{day:02}T00:00:00+00:00"}
        card = {**about, "kind": "machine", "device": "cpu", "toy": False}
        with (folder / "cpu-a.jsonl").open("a") as file:
            file.writelines(json.dumps(line) + "\n" for line in (card, *({**about, **line} for line in records)))

    return add


def line(variant, milliseconds, batch=1, part="unet", name=UNET, pixels=32, threads=2, steps=1):
    about = {"part": part, "name": name, "batch": batch, "pixels": pixels, "threads": threads, "variant": variant, "steps": steps}
    measured = {"median": 1e-3 * milliseconds, "spread": 1e-4 * milliseconds, "gflops": 90.0, "share": 1.5, "error": 1e-6}
    return {**about, "kind": "cpu", "case": f"{part} {name} {batch} {pixels} {threads}", **measured}


def verdicts():
    rows = [row.strip("| ").split(" | ") for row in report_cpu.cpu_targets().splitlines() if row.startswith("|")]
    return {row[0]: row[3:] for row in rows[2:]}


def test_nothing_measured_is_one_line(results):
    for name in ("cpu-targets", "cpu-unet", "cpu-guides", "cpu-guided-step", "cpu-layers", "cpu-memory"):
        assert figures.FIGURES[name]() == report_cpu.NOT_YET


def test_targets_of_networks_take_the_best_of_the_opponents_in_one_run(results):
    results(1, line("engine", 10), line("eager fp32", 20), line("OpenVINO", 14), line("ONNX Runtime", 16))
    results(2, line("engine", 10, 8), line("eager fp32", 30, 8), line("OpenVINO", 30, 8))
    found = verdicts()
    assert found["U-Net against eager NCHW, batch 1, 2 threads"] == ["2×", "met"]
    assert found["U-Net against the better of OpenVINO and ONNX Runtime, batch 1, 2 threads"] == ["1.4×", "**missed**"]
    assert found["U-Net against eager NCHW, batch 8, 2 threads"] == ["3×", "stretch reached"]
    assert found["U-Net against the better of OpenVINO and ONNX Runtime, batch 8, 2 threads"] == ["–", "not measured"]
    assert len(found) == len(report_cpu.TARGETS)


def test_targets_of_steps_and_layers_take_the_worst_of_their_cases(results):
    steps = [
        line(variant, milliseconds, batch, "step", STEP, steps=2)
        for batch, theirs in ((1, 40), (8, 30))
        for variant, milliseconds in (("engine", 10), ("naive loop", theirs), ("eager fp32", 30), ("eager channels_last", 28))
    ]
    layers = [
        line(variant, milliseconds, batch, "layers", name, 8, threads=1)
        for batch, name, theirs in ((1, "256->256", 2.3), (1, "640->640", 2.1), (8, "256->256", 4.0))
        for variant, milliseconds in (("engine", 1.0), ("oneDNN prepacked", theirs))
    ]
    results(1, *steps, *layers)
    found = verdicts()
    assert found["DDPM + WRN step against the naive loop, worse of batch 1, 8"] == ["3×", "**missed**"]
    assert found["DDPM + WRN step against the better eager layout, frozen, worse of batch 1, 8"] == ["2.8×", "stretch reached"]
    assert found["cold layers of 8 px, batch 1, the worse"] == ["2.1×", "met"]
    assert found["cold layers of 8 px, batch 8, the worse"] == ["–", "not measured"]
    assert "| 1 | 8 | 1 | engine | 1 ± 0.1 | 90 | 150 % | 2.30× | 1.0e-06 |" in report_cpu.cpu_layers()
    assert "| engine | 5 ± 0.5 |" in report_cpu.cpu_guided_step()


def test_growth_with_batch_and_resolution_is_a_row_a_variant(results):
    results(1, line("engine", 10), line("engine", 64, 8), line("engine", 40, pixels=64), line("OpenVINO", 20))
    text = report_cpu.cpu_unet()
    assert "| threads | ms an image | batch 1, 32 px | batch 8, 32 px | batch 1, 64 px |" in text
    assert "| 2 | engine | 10 | 8 | 40 |" in text and "| 2 | OpenVINO | 20 | – | – |" in text
    results(2, line("engine", 1, 8))  # a part of another run
    assert "| 2 | engine | 10 | 8 | 40 |" in report_cpu.cpu_unet()


def test_memory_is_given_in_mebibytes(results):
    about = {"name": UNET, "batch": 1, "threads": 2, "variant": "engine"}
    results(1, {"kind": "memory", **about, "peak": 300 * 2**20, "resident": 200 * 2**20})
    assert "| engine | 300 | 200 |" in report_cpu.cpu_memory()


# Tuning


def test_ways_to_convolve_are_timed_and_the_table_is_made_from_the_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(tune_cpu, "TABLE", tmp_path / "table.py")
    threads, room = torch.get_num_threads(), cpp.room
    before = room.instruction_set()
    status = tune_cpu.main(["--toy", "--results", str(tmp_path), "--instruction-set", before, "--write"])
    assert (torch.get_num_threads(), room.instruction_set()) == (threads, before)
    told = [line for line in read_records(sorted(tmp_path.glob("tiles-cpu-*.jsonl"))) if line["kind"] == "cpu-tile"]
    written: dict = {}
    exec((tmp_path / "table.py").read_text(), written)
    assert status == 0 and told[-1]["problem"] == [1, 8, 16, 16] and "direct" in told[-1]["medians"]
    best = told[-1]["best"]
    assert written["WINNERS"] == {before: {(1, 8, 16, 16): best and tuple(best)}}


def test_the_committed_table_is_the_one_that_the_results_give():
    records = read_records(sorted((ROOT / "bench" / "results").glob("tiles-cpu-*.jsonl")))
    assert tune_cpu.TABLE.read_text() == tune_cpu.table(records)
