"""The benchmark of CPUs: a dry run through its code, wrong variants found, absent ones said."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.core import clocks, process_memory
from bench.core.comparison import AbsentError, relative_error
from bench.core.run import begin, parser
from bench.opponents import cpu_runtimes
from bench.report import cpu as report
from bench.runs import cpu
from bench.subjects import cpu as subjects
from bench.subjects import host_work, smooth_images
from bench.subjects.cpu import HONEST, Entry, Setting, Subject
from bench.tuning import winograd_ways
from purify_engine import ops
from purify_engine.benchmark.harness import read_records

ROOT = Path(__file__).parent.parent
UNET, STEP = report.UNET, report.STEP
AFTER = (host_work.ALONE, HONEST, "engine")
EAGER = {"eager fp32", "eager channels_last"}


@pytest.fixture
def run(tmp_path):
    return begin("cpu", parser("cpu", "d."), ["--toy", "--results", str(tmp_path)])[0]


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
    monkeypatch.setattr(cpu, "toys", lambda found, toys=cpu.toys: list(toys(found))[:1])
    only = [*variants - {HONEST}]
    threads = torch.get_num_threads()
    status = cpu.main(["--toy", "--part", part, "--threads", "1", "--results", str(tmp_path), "--variant", *only])
    found = read_records(sorted(tmp_path.glob("cpu-*.jsonl")))
    told = [line for line in found if line["kind"] == "cpu"]
    assert status == 0 and {line["variant"] for line in told} == variants
    assert all(line["part"] == part and line["threads"] == 1 and line["median"] > 0 and line["share"] > 0 for line in told)
    assert all(line["cache"] == ("cold" if part == "layers" else "warm") for line in told)
    checks = [line for line in found if line["kind"] == "check"]
    assert len(checks) == len(variants) and all(check["ok"] for check in checks)
    assert torch.get_num_threads() == threads


@pytest.mark.skipif("avx2" not in ops.instruction_sets(), reason="no extension, or no AVX2")
def test_all_variants_are_held_to_avx2_or_left_out(tmp_path):
    words = ["--avx2", "--toy", "--part", "unet", "--threads", "1", "--results", str(tmp_path)]
    subprocess.run([sys.executable, "-m", "bench", "cpu", *words], check=True, cwd=ROOT, capture_output=True)
    found = read_records(sorted(tmp_path.glob("cpu-*-1-threads-avx2-at-most.jsonl")))
    assert {line["isa"] for line in found if line["kind"] == "ceilings"} == {"AVX2"}
    assert all("AVX2 at most" in line["machine"] for line in found)
    assert {line["variant"] for line in found if line["kind"] == "cpu"} == {*EAGER, "engine", "engine loop"}


def test_a_hosts_own_work_is_timed_alone_and_after_each_at_toy_size(tmp_path, monkeypatch):
    monkeypatch.setattr(cpu, "toys", lambda found, toys=cpu.toys: list(toys(found))[:1])
    threads = torch.get_num_threads()
    assert cpu.main(["--toy", "--part", "beside", "--threads", "1", "--results", str(tmp_path)]) == 0
    told = [line for line in read_records(sorted(tmp_path.glob("cpu-*.jsonl"))) if line["kind"] == "beside"]
    hosts = host_work.works(toy=True)
    assert [(line["host"], line["after"]) for line in told] == [(host, name) for host in hosts for name in AFTER]
    for line in told:
        assert (line["part"], line["name"], line["batch"], line["threads"]) == ("beside", UNET, 1, 1)
        assert line["n"] == host_work.TOY_ROUNDS and line["median"] > 0 and line["spread"] >= 0
    assert torch.get_num_threads() == threads


def test_a_hosts_work_comes_right_after_the_call_and_alone_is_timed(monkeypatch):
    order = []
    monkeypatch.setattr(host_work.time, "sleep", lambda seconds: order.append(seconds))
    monkeypatch.setattr(host_work, "wall_clock", lambda call: order.append("timed") or call() or 7.0)
    clock = host_work.right_after(lambda: order.append("work"), rest=0.05)
    assert clock(lambda: order.append("before")) == 7.0
    assert order == [0.05, "before", "timed", "work"]


def test_no_wrong_variant_runs_before_a_hosts_work(run, monkeypatch):
    asked = subject(eager=torch.ones(4), engine=torch.full((4,), 1.1))
    monkeypatch.setattr(cpu, "subject", lambda setting, toy: asked)
    cpu.measure_host_work(run, Setting("beside", UNET, 1, 8))
    assert {line["after"] for line in lines(run, "beside")} == {host_work.ALONE, HONEST} and len(run.failed) == 1


def test_a_gradient_says_which_opponents_have_none(run):
    asked = subjects.subject(Setting("guide", "resnet18, d/dx", 1, 8), toy=True)
    cpu.measure(run, Setting("guide", "resnet18, d/dx", 1, 8), asked, only=[])
    told = {line["name"].rsplit(": ")[-1]: line["says"] for line in lines(run, "note")}
    assert told == dict.fromkeys(("ONNX Runtime", "OpenVINO"), cpu_runtimes.NO_BACKWARD)


def test_the_first_to_be_measured_are_those_of_the_targets():
    chosen = parser("cpu", "d.").parse_args([])
    chosen.part, chosen.batch = list(cpu.PARTS), None
    command = type("Run", (), {"toy": False})()
    asked = list(cpu.settings(command, 2, chosen))
    places = {(setting.part, setting.batch, setting.pixels, setting.name) for setting in asked}
    assert {("layers", *place) for place in report.FROM_16_PIXELS} <= places
    assert {("layers", batch, 8, name) for batch in (1, 8) for name in report.OF_8_PIXELS} <= places
    assert {(part, batch, 32, name) for part, name in (("unet", UNET), ("step", STEP)) for batch in (1, 8)} <= places
    assert [str(setting) for setting in asked[:2]] == [f"unet {UNET}, batch {batch}, 32 px, 2 threads" for batch in (1, 8)]


def test_peers_are_on_the_same_function_where_they_are_installed():
    asked = subjects.subject(Setting("unet", UNET, 2, 8), toy=True)
    with torch.no_grad():
        truth = asked.truth()
        for name in ("ONNX Runtime", "OpenVINO"):
            try:
                call = asked.makers[name]().call
            except AbsentError:
                continue
            assert relative_error(call().double(), truth) < 1e-5


# Faults that must be found


def subject(**results):
    """A subject whose variants give these tensors."""
    made = {name: (lambda value=value: Entry(lambda: value, lambda: value)) for name, value in results.items()}
    return Subject({HONEST: made.pop("eager"), **made}, lambda: torch.ones(4, dtype=torch.float64), 8)


def test_a_variant_that_is_wrong_is_a_failed_check_and_is_not_timed(run):
    wrong = {"engine": torch.full((4,), 1 + 5e-6), "OpenVINO": torch.full((4,), 1 + 5e-6), "ONNX Runtime": torch.ones(3)}
    asked = subject(eager=torch.full((4,), 1 + 1e-6), nan=torch.full((4,), float("nan")), **wrong)
    cpu.measure(run, Setting("unet", "fake", 1, 8), asked)
    assert [name.rsplit(": ")[-1] for name in run.failed] == ["nan", "engine", "ONNX Runtime"]  # 5 x is fair for an opponent only
    assert {line["variant"] for line in lines(run, "cpu")} == {HONEST, "OpenVINO"}
    assert run.close() == 1


def test_one_that_breaks_or_is_absent_stops_no_other(run, monkeypatch):
    asked = subject(eager=torch.ones(4), engine=torch.ones(4))

    def breaks():
        raise RuntimeError("no such layer")

    monkeypatch.setattr(cpu_runtimes.importlib.util, "find_spec", lambda name: None)
    asked.makers |= {"broken": breaks, "OpenVINO": lambda: cpu_runtimes.openvino(torch.nn.Identity(), (torch.ones(4),))}
    cpu.measure(run, Setting("unet", "fake", 1, 8), asked)
    assert {line["variant"] for line in lines(run, "cpu")} == {HONEST, "engine"}
    assert [line["says"] for line in lines(run, "check") if not line["ok"]] == ["RuntimeError: no such layer"]
    assert [line["says"] for line in lines(run, "note")] == ["not measured: openvino is not installed here"]


def test_a_cold_call_comes_after_the_flush():
    seen = []
    clock = clocks.ColdClock(torch.ones(4), flush=64)
    for _ in range(2):
        clock(lambda: seen.append(float(clock.flush[0])) or torch.ones(4))
    assert seen == [1, 2] and clock.result.shape == (4,)


def test_memory_is_what_a_network_holds():
    before = process_memory.settled()
    kept = torch.ones(2**23)
    assert 0.9 * 2**25 < process_memory.settled() - before < 1.3 * 2**25
    assert process_memory.peak() >= process_memory.status("VmRSS") > kept.nbytes


@pytest.mark.slow
def test_memory_is_measured_in_a_process_of_its_own(tmp_path):
    words = ["--toy", "--part", "memory", "--threads", "1", "--variant", "engine", "--results", str(tmp_path)]
    assert cpu.main(words) == 0
    found = [line for line in read_records(sorted(tmp_path.glob("*.jsonl"))) if line["kind"] == "memory"]
    assert [(line["batch"], line["variant"]) for line in found] == [(1, HONEST), (1, "engine"), (2, HONEST), (2, "engine")]
    assert all(line["peak"] >= line["resident"] for line in found)


# Tuning


def test_ways_to_convolve_are_timed_and_the_table_is_made_from_the_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(winograd_ways, "TABLE", tmp_path / "table.py")
    threads, before = torch.get_num_threads(), ops.instruction_set()
    status = winograd_ways.main(["--toy", "--results", str(tmp_path), "--instruction-set", before, "--write"])
    assert (torch.get_num_threads(), ops.instruction_set()) == (threads, before)
    told = [line for line in read_records(sorted(tmp_path.glob("tiles-cpu-*.jsonl"))) if line["kind"] == "cpu-tile"]
    written: dict = {}
    exec((tmp_path / "table.py").read_text(), written)
    assert status == 0 and told[-1]["problem"] == [1, 8, 16, 16] and "direct" in told[-1]["medians"]
    best = told[-1]["best"]
    assert written["WINNERS"] == {before: {(1, 8, 16, 16): best and tuple(best)}}


def test_the_committed_table_is_the_one_that_the_results_give():
    records = read_records(sorted((ROOT / "bench" / "results").glob("tiles-cpu-*.jsonl")))
    assert winograd_ways.TABLE.read_text() == winograd_ways.table(records)


def test_slack_is_how_far_the_truth_goes_for_one_rounding():
    jump = lambda x: (x > 1 + 1e-6).double() + 1  # noqa: E731
    images = torch.ones(4, dtype=torch.float64)
    assert subjects._slack(jump, images, jump(images)) == 0
    assert subjects._slack(jump, (1 + 1e-6) * images, jump(images)) == 1


def test_gradients_are_compared_where_no_relu_is_near_zero():
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.ReLU())
    images = torch.tensor([[1.0, -1.0], [1.0, 0.0], [3.0, -0.5], [1.0, 0.9]])[:, :, None, None].repeat(1, 1, 1, 3)
    scale = torch.tensor([1.0, 0.5, 4.625, 0.905]).sqrt()
    assert torch.allclose(smooth_images.margins(network, images), torch.tensor([1.0, 0.0, 0.5, 0.9]) / scale)
    assert smooth_images.smoothest(network, images, 2).tolist() == [0, 3]
