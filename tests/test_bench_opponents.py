"""The opponents' commands: dry runs without a GPU, and that processes take turns."""

from __future__ import annotations

import multiprocessing
import time

import pytest
import torch

from bench.core.comparison import AbsentError
from bench.core.run import Run
from bench.core.turns import Turns
from bench.opponents import compiled
from bench.runs import cold_start, fp8, loop, whole
from bench.runs import compiled as compiling
from bench.subjects.purification import images_for
from purify_engine.benchmark.harness import Records, read_records


@pytest.fixture
def lines(tmp_path):
    """Runs a command at toy size and gives (exit status, its lines)."""

    def command(main, *words):
        status = main([*words, "--toy", "--device", "cpu", "--results", str(tmp_path)])
        return status, read_records(sorted(tmp_path.glob("*.jsonl")))

    return command


def test_a_mode_of_torch_compile_is_timed_in_a_process_beside_the_engine(lines):
    status, found = lines(compiling.main, "--mode", "reduce-overhead", "--seconds", "120")
    told = {line["variant"]: line for line in found if line["kind"] == "loop"}
    assert status == 0 and set(told) == {"engine graph", "torch.compile reduce-overhead"}
    assert len({line["run"] for line in told.values()}) == 1  # so that a ratio is of one run


def test_compiling_that_takes_too_long_is_said_and_not_timed(tmp_path):
    run = Run(Records(tmp_path / "lines.jsonl"), torch.device("cpu"), toy=True)
    maker = compiled.Compiled(run, "max-autotune", Turns(), seconds=0.0)
    purifier = loop.purifier_of(run, loop.TOY_SETTINGS[0])
    maker.prepare(purifier, images_for(purifier, 1))
    with pytest.raises(AbsentError, match="compiling was not done within 0 s"):
        maker(purifier)


def test_what_a_compiler_makes_of_the_alarm_is_still_out_of_time():
    with pytest.raises(AbsentError, match="not done within 0 s"), compiled.limited(0.01):
        try:
            time.sleep(5)
        except AbsentError as alarm:
            raise RuntimeError("the backend failed") from alarm


def test_a_fault_within_the_time_stays_itself():
    with pytest.raises(ZeroDivisionError), compiled.limited(60):
        1 / 0  # noqa: B018


def test_every_mode_has_its_own_options_and_graphs():
    for mode in compiled.MODES:
        assert compiled.options_of(mode)["triton.cudagraphs"]
    tuned = compiled.options_of("max-autotune")
    assert tuned["max_autotune"] and not tuned["coordinate_descent_tuning"] and tuned["max_autotune_conv_backends"] == "ATEN"


def _measures(folder, place, told):
    turns = Turns(folder, place)
    told.send("is there")
    with turns.measuring():
        told.send("measures")


def test_nothing_is_measured_while_another_process_prepares(tmp_path):
    told, ours = multiprocessing.Pipe(duplex=False)
    other = multiprocessing.get_context("spawn").Process(target=_measures, args=(tmp_path, 0, ours))
    with Turns(tmp_path, 1).preparing(), Turns(tmp_path, 2).preparing():  # many prepare at a time
        other.start()
        assert told.recv() == "is there" and not told.poll(0.5)
    assert told.poll(60) and told.recv() == "measures"
    other.join()


def test_those_of_lower_place_measure_first(tmp_path):
    told, ours = multiprocessing.Pipe(duplex=False)
    first = Turns(tmp_path, 0)
    other = multiprocessing.get_context("spawn").Process(target=_measures, args=(tmp_path, 1, ours))
    other.start()
    assert told.recv() == "is there" and not told.poll(0.5)  # though no opponent is prepared
    with first.measuring():
        assert not told.poll(0.2)
    assert told.poll(60) and told.recv() == "measures"
    other.join()


def test_where_compiling_failed_no_time_is_taken_from_the_next(tmp_path):
    run = Run(Records(tmp_path / "lines.jsonl", run="now"), torch.device("cpu"), toy=True)
    maker = compiled.Compiled(run, "max-autotune", Turns(), seconds=0.0)
    makers = {"engine graph": pytest.fail, "torch.compile max-autotune": maker}
    loop.measure(run, loop.TOY_SETTINGS[0], makers, Turns(tmp_path / "turns"))
    assert [line["says"] for line in read_records([run.records.path])] == ["not measured: compiling was not done within 0 s"]


def test_whole_purifications_are_timed_beside_diffpures_loop(lines):
    status, found = lines(whole.main)
    told = {(line["by"], line["guided"], line["steps"]) for line in found if line["kind"] == "whole"}
    assert status == 0 and told == set(whole.ways(4, 2))


def test_a_cold_start_is_told_by_its_parts(lines):
    status, found = lines(cold_start.main)
    (told,) = [line for line in found if line["kind"] == "cold start"]
    assert status == 0 and told["wait"] == pytest.approx(sum(told[stage] for stage in cold_start.STAGES))
    assert all(told[stage] > 0 for stage in (*cold_start.STAGES, "second batch")) and told["execution"] == "graph"


def test_a_cold_process_that_fails_is_a_failed_check(lines, monkeypatch):
    monkeypatch.setattr(cold_start, "SCRIPT", "raise SystemExit('no such thing')")
    status, found = lines(cold_start.main)
    assert status == 1 and [line["says"] for line in found if line["kind"] == "check"] == ["no such thing"]


def test_fp8_is_timed_beside_bf16_or_said_to_be_absent(lines):
    status, found = lines(fp8.main)
    timed = {line["variant"] for line in found if line["kind"] == "fp8"}
    absent = [line["says"] for line in found if line["kind"] == "note"]
    assert status == 0 and timed >= {"bf16 cuDNN", "bf16 matrix product"}
    assert all(says.startswith("not measured: ") for says in absent)


def test_a_variant_that_is_not_known_is_refused_with_those_that_are(lines):
    with pytest.raises(SystemExit, match=r"must be of engine graph, .*, diffusers, got nothing"):
        lines(loop.main, "--variant", "engine graph", "nothing")
