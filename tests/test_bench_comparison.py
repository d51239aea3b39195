"""The one rule of the benchmarks: what is absent, breaks or is wrong gets a line that says so, and no timing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bench.core.comparison import AbsentError, Finding, Variant, compare, difference, first_line, nearer_than, sound, within
from bench.core.run import begin, parser
from bench.runs import loop, ops
from bench.subjects.op_case import OpCase
from bench.subjects.purification import Comparison, engine, images_for
from bench.tuning import conv3x3_tiles, winograd_ways
from purify_engine.benchmark.eager_baseline import BASELINES
from purify_engine.benchmark.harness import read_records
from purify_engine.benchmark.networks import TOY_GUIDE, TOY_NETWORKS, random_purifier
from purify_engine.config import PurifierConfig
from purify_engine.ops import OPS, Launcher
from purify_engine.testing.cases import Case

TRUTH = torch.tensor([3.0, 4.0], dtype=torch.float64)


@pytest.fixture
def run(tmp_path):
    return begin("loop", parser("loop", "d."), ["--results", str(tmp_path), "--toy", "--device", "cpu"])[0]


def lines(run, kind):
    return [line for line in read_records([run.records.path]) if line["kind"] == kind]


def away(relative, truth=TRUTH):
    """The truth moved by this share of its length."""
    return truth + relative * truth.norm() * torch.tensor([0.6, 0.8], dtype=torch.float64)


def raising(fault):
    def call():
        raise fault

    return call


# Judges


@pytest.mark.parametrize(("error", "fault"), [(1.9e-3, False), (2.1e-3, True), (float("nan"), True)])
def test_a_result_may_be_a_few_times_as_far_as_honest_pytorch(error, fault):
    found = compare(away(error).float(), away(1e-3).float(), TRUTH, within(2))
    assert bool(found.fault) == fault and found.error == pytest.approx(error, rel=1e-3, nan_ok=True)


def test_one_rounding_is_allowed_where_honest_pytorch_makes_no_error():
    exact, last_place = TRUTH.float(), 2**-21  # of 4; one rounding of a result of length 5 is 5 * 2**-23
    assert not compare(exact + torch.tensor([0, last_place]), exact, TRUTH, within(2)).fault
    assert compare(exact + torch.tensor([0, 2 * last_place]), exact, TRUTH, within(2)).fault


def test_slack_takes_the_place_of_a_smaller_honest_error():
    got, honest = away(1e-3).float(), away(1e-6).float()
    assert compare(got, honest, TRUTH, within(2)).fault
    assert not compare(got, honest, TRUTH, within(2, slack=6e-4)).fault


def test_an_honest_result_that_is_not_a_number_makes_nothing_right():
    assert compare(TRUTH.float(), torch.full((2,), torch.nan), TRUTH, within(10)).fault


def test_a_judge_with_a_limit_asks_honest_pytorch_nothing():
    assert not compare(away(0.9e-9), TRUTH, TRUTH, nearer_than(1e-9)).fault
    assert compare(away(1.1e-9), away(1.0), TRUTH, nearer_than(1e-9)).fault


@pytest.mark.parametrize("truth", [torch.zeros(0, 3, 4, 4), torch.zeros(2, 3)], ids=["empty", "zero"])
def test_nothing_is_wrong_with_nothing_and_with_zeros(truth):
    truth = truth.double()
    for extended in (truth, truth.numpy().astype(np.longdouble)):
        found = compare(truth.clone(), truth, extended, nearer_than(1e-12))
        assert found == Finding(0.0)
    assert not truth.numel() or compare(truth + 1e-9, truth, truth, nearer_than(1e-12)).fault


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 2, 0, 3)], ids=str)
def test_images_of_no_pixels_agree_in_float64(shape):
    case = Case("to_images", shape, torch.float64)
    assert OpCase(case, torch.device("cpu")).finding("reference", within(2)) == Finding(0.0)


def test_another_shape_is_a_fault():
    assert compare(torch.ones(3), torch.ones(2), TRUTH, within(10)).fault == "shape (3,), expected (2,)"


def test_the_truth_may_be_in_extended_precision():
    truth = np.array([3, 4], dtype=np.longdouble)
    assert compare(away(1e-3), TRUTH, truth, lambda *_: None).error == pytest.approx(1e-3)


def test_the_same_to_the_bit_is_less_than_one_rounding_apart():
    x = torch.tensor([1.0, -2.0, 0.0])
    assert difference(x.clone(), x) == ""
    for place in range(3):
        moved = x.clone()
        moved[place] = moved[place].nextafter(torch.tensor(torch.inf))
        assert "1 of 3 elements differ, by" in difference(moved, x)
    assert "3 of 3" in difference(torch.full((3,), torch.nan), torch.full((3,), torch.nan))
    assert difference(x.double(), x).startswith("torch.float64") and difference(x[:2], x).startswith("torch.float32 (2,)")


# The rule


def test_only_what_agrees_may_be_timed_and_every_other_has_its_line(run):
    makers = {
        "right": lambda: Variant(lambda: 1, lambda: Finding(1e-7)),
        "wrong": lambda: Variant(lambda: 2, lambda: Finding(0.1, "far off")),
        "absent": raising(AbsentError("not installed here")),
        "too large": lambda: Variant(lambda: 3, raising(torch.OutOfMemoryError("no memory"))),
        "unbuildable": raising(KeyError("weight")),
        "breaks": lambda: Variant(lambda: 4, raising(RuntimeError("no such layer\nand more"))),
    }
    found = sound(run, "case", makers)
    assert {name: (one.call(), one.error) for name, one in found.items()} == {"right": (1, 1e-7)}
    assert {line["check"]: (line["ok"], line["says"]) for line in lines(run, "check")} == {
        "case: right": (True, "relative error 1e-07 to float64"),
        "case: wrong": (False, "far off"),
        "case: unbuildable": (False, "KeyError: 'weight'"),
        "case: breaks": (False, "RuntimeError: no such layer"),
    }
    assert {line["name"]: line["says"] for line in lines(run, "note")} == {
        "case: absent": "not measured: not installed here",
        "case: too large": "not measured: out of memory",
    }
    assert run.failed == ["case: wrong", "case: unbuildable", "case: breaks"] and run.close() == 1


# Every benchmark keeps it


def test_a_purification_that_computes_something_else_is_a_fault():
    purifier = random_purifier(TOY_NETWORKS["toy-ddpm"], TOY_GUIDE, PurifierConfig(t_star=100, num_steps=3, noise="fixed"))
    compared = Comparison(purifier, images_for(purifier, 3))
    eager = compared.finding(BASELINES["eager fp32"](purifier))
    assert eager.fault == "" and eager.error < 1e-5
    assert compared.finding(engine(purifier, "loop")).fault == ""
    wrong = engine(purifier, "loop")
    with torch.no_grad():
        next(wrong.denoiser.parameters()).mul_(1.001)
    assert compared.finding(wrong).fault != ""


def off(make):
    """A variant on weights that are not the given ones."""

    def made(purifier):
        variant = make(purifier)
        with torch.no_grad():
            next(variant.parameters()).mul_(1.1)
        return variant

    return made


def test_a_wrong_purification_is_not_timed(run):
    setting = loop.TOY_SETTINGS[0]
    makers = {"eager fp32": BASELINES["eager fp32"], "wrong": off(BASELINES["eager fp32"])}
    loop.measure(run, setting, makers)
    assert [line["variant"] for line in lines(run, "loop")] == ["eager fp32"]
    assert run.failed == [f"toy {setting}: wrong"]


def test_what_breaks_while_it_is_timed_is_a_failed_check(run):
    class Breaking:
        """An eager purification that breaks at its second call of the whole length."""

        def __init__(self, purifier):
            self.purifier, self.calls = BASELINES["eager fp32"](purifier), 0

        def __getattr__(self, name):
            return getattr(self.purifier, name)

        def __call__(self, *images):
            self.calls += 1
            if self.calls == 2:
                raise RuntimeError("launch failure")
            return self.purifier(*images)

    loop.measure(run, loop.TOY_SETTINGS[0], {"breaking": Breaking})
    assert lines(run, "loop") == [] and run.failed == [f"toy {loop.TOY_SETTINGS[0]}: timed in turn"]


def test_a_wrong_engine_of_an_op_is_not_timed(run, monkeypatch):
    case = next(case for case in ops.timed_cases(run.device, toy=True) if case.op == "q_sample")
    reference = OPS["q_sample"].reference
    off = Launcher(lambda *words, **how: tuple(1.001 * y for y in reference(*words, **how)))
    monkeypatch.setitem(OPS["q_sample"].engines, "cpp", off)
    ops.measure(run, case, {"copy": 1e9, "matmul float32": 1e9})
    assert {line["engine"] for line in lines(run, "op")} == {"reference"}
    assert run.failed == [f"q_sample {case}: cpp"]


def test_a_wrong_tile_is_not_timed(run, monkeypatch):
    factors = {0: 1.1, 1: 1.0}  # the first tile is wrong
    made = []

    def with_tile(problem, tile, arguments, around):
        factor = factors[len(made)]
        made.append(tile)
        return lambda: factor * conv3x3_tiles.by_cudnn(arguments, around)

    monkeypatch.setattr(conv3x3_tiles, "with_tile", with_tile)
    conv3x3_tiles.measured(run, "toy", 1, conv3x3_tiles.TOY["toy"][1])
    (told,) = lines(run, "tile")
    assert told["tile"] == made[1]._asdict() and run.failed == [f"toy (2, 8, 8, 8, 1), batch 1: {made[0]}"]


def test_a_wrong_way_to_convolve_is_not_timed_and_cannot_win(run, monkeypatch):
    sound_ways = winograd_ways.winograd.convolved
    monkeypatch.setattr(winograd_ways.winograd, "convolved", lambda *words, **how: 1.001 * sound_ways(*words, **how))
    _, conv = next(iter(winograd_ways.shapes(run, type("Chosen", (), {"network": None, "batch": None})())))
    winograd_ways.measure(run, "avx2", 1, conv)
    (told,) = lines(run, "cpu-tile")
    assert told["best"] is None and set(told["medians"]) == {"direct"} and run.failed


def test_the_error_of_several_results_is_the_largest_and_an_empty_one_has_none():
    case = Case("sum_norm_silu", (1, 32, 16, 16), variant="bias-temb-only", num_groups=8)
    found = OpCase(case, torch.device("cpu")).finding("reference", within(2))
    assert not found.fault and 0 < found.error < 1e-5


def test_a_line_that_ends_in_a_colon_is_told_with_its_reason():
    fault = RuntimeError("no import, because of:\n\n  no module x\nmore")
    assert first_line(fault) == "RuntimeError: no import, because of: no module x"
    assert first_line(ValueError("one\ntwo")) == "ValueError: one" and first_line(KeyError()) == "KeyError: "


def test_large_passes_are_asked_for_by_what_they_move(tmp_path):
    words = ["--op", "residual_sum", "to_images", "--bytes", "1e12", "--device", "cpu", "--results", str(tmp_path)]
    assert ops.main(words) == 0
    (path,) = tmp_path.glob("ops-*.jsonl")
    assert {line["kind"] for line in read_records([path])} == {"machine", "ceilings"}
