"""What the checks of the benchmarks must find: planted faults, down to a graph that is off by one rounding."""

from __future__ import annotations

import shutil

import pytest
import torch

from bench.core.run import begin, commit, parser
from bench.runs import check_gradient, check_graph, check_ops
from bench.subjects.op_case import OpCase, moved
from purify_engine.benchmark.harness import read_records
from purify_engine.benchmark.networks import TOY_GUIDE, TOY_NETWORKS, random_purifier
from purify_engine.ops import OPS, Launcher, Op
from purify_engine.testing.cases import Case, cases

CPU = torch.device("cpu")


@pytest.fixture
def lines(tmp_path):
    """Runs a command at toy size and gives (exit status, its lines)."""

    def command(main, *words):
        status = main([*words, "--toy", "--device", "cpu", "--results", str(tmp_path)])
        return status, read_records(sorted(tmp_path.glob("*.jsonl")))

    return command


def disagreement(op: Op, case: Case) -> str:
    return check_ops.disagreement(OpCase(case, CPU, op), "cpp")


def broken(op: Op, change) -> Op:
    def launch(*args, **kwargs):
        return change(op.reference(*args, **kwargs))

    return flat(op, launch)


def flat(op: Op, cpp) -> Op:
    """The op with `cpp`, a function of its schema's own arguments, for the engine of that name."""
    return Op(op.name, {**op.engines, "cpp": Launcher(cpp)}, lambda *args, **kwargs: None, judge=op.judge)


@pytest.mark.parametrize("name", ["group_norm_silu", "philox", "to_images", "conv3x3"])
def test_an_engine_that_is_slightly_wrong_is_found(name):
    case = next(c for c in cases(name) if 0 not in c.shape and c.dtype == torch.float32 and min(c.shape[2:], default=2) > 1)
    op = OPS[name]
    assert disagreement(flat(op, op.reference), case) == ""
    off = broken(op, lambda y: y * 1.0001 if y.is_floating_point() else y + 1)
    assert disagreement(off, case) != ""


def test_another_memory_format_than_the_references_is_found():
    op, case = OPS["group_norm_silu"], Case("group_norm_silu", (2, 4, 3, 3), num_groups=2)
    sideways = broken(op, lambda y: y.contiguous(memory_format=torch.channels_last))
    assert "strides" in disagreement(sideways, case)


def test_an_element_that_a_kernel_leaves_unwritten_is_found():
    op, case = OPS["group_norm_silu"], Case("group_norm_silu", (2, 4, 3, 3), num_groups=2)

    def forgetful(y):
        out = torch.empty_like(y)
        out.view(-1)[1:] = y.reshape(-1)[1:]
        return out

    assert "NaN" in disagreement(broken(op, forgetful), case)


def test_an_engine_that_takes_no_case_at_all_has_not_passed(tmp_path):
    command, _ = begin("checks", parser("check-ops", "d."), ["--results", str(tmp_path), "--toy"])
    launcher = Launcher(OPS["philox"].reference, declines=lambda *_: "not today")
    declining = Op("philox", {**OPS["philox"].engines, "cpp": launcher}, OPS["philox"].check)
    check_ops.check_engine(command, declining, "cpp")
    assert command.failed == ["philox cpp"] and command.close() == 1


def test_tensors_keep_their_gaps_and_repetitions_on_the_way_to_a_device():
    for layout in ("contiguous", "channels_last", "strided", "expanded"):
        (x, *_) = Case("to_images", (2, 3, 4, 5), layout=layout).arguments()
        there = moved(x, torch.device("meta"))
        assert (there.shape, there.stride(), there.device.type) == (x.shape, x.stride(), "meta")


def test_a_graph_that_replays_old_noise_is_found(monkeypatch):
    purifier = random_purifier(TOY_NETWORKS["toy-ddpm"], TOY_GUIDE, execution="loop")
    guide = check_graph.guides(purifier)["xt"]
    assert check_graph.graph_fault(purifier, guide, CPU, whole_plan=False) == ""

    class Stale(check_graph.Replay):
        def run(self, process, x):
            return super().run(process._replace(noise=check_graph.NoiseKey(torch.tensor(0), process.noise.ids)), x)

    monkeypatch.setattr(check_graph, "Replay", Stale)
    assert "seed 1, ReversePlan(ddpm" in check_graph.graph_fault(purifier, guide, CPU, whole_plan=False)


def test_a_wrong_gradient_is_found(lines, monkeypatch):
    sound = check_gradient.gradient
    single = [0]

    def off(purifier):
        found = sound(purifier)
        single[0] += found.dtype == torch.float32
        here = single[0] == 2 and found.dtype == torch.float32  # the second in float32 is this device's
        return 1.001 * found if here else found

    monkeypatch.setattr(check_gradient, "gradient", off)
    status, found = lines(check_gradient.main)
    failed = [line["check"] for line in found if line["kind"] == "check" and not line["ok"]]
    assert (status, failed) == (1, ["gradient toy-ddpm float32"])


def gradients():
    """(honest PyTorch's, the truth): every image is as wrong as any other, but for one that is ten times as wrong."""
    generator, images = torch.Generator().manual_seed(0), check_gradient.DRAWS * check_gradient.BATCH
    truth, errors = torch.randn(2, images, 3, 8, 8, dtype=torch.float64, generator=generator)
    errors *= 1e-6
    errors[5] *= 10
    return (truth + errors).float(), truth


@pytest.mark.parametrize(
    ("part", "says"),
    [
        ((slice(None), 2, 7, 0), "of a pixel"),
        ((slice(3, None, check_gradient.BATCH),), "of a place in the batch"),
        ((9, 1, 1, 1), "of an element"),
    ],
)
def test_a_gradient_that_is_wrong_in_one_place_is_found(part, says):
    honest, truth = gradients()
    judge = check_gradient.as_good_as_honest
    judge(truth.float() + (honest - truth).flip(0).float(), honest, truth)  # the sensitive image is another one: that is luck
    got = honest.clone()
    got[part] += 1e-3 if says == "of an element" else 5e-6
    with pytest.raises(AssertionError, match=says):
        judge(got, honest, truth)


def test_a_gradient_that_is_not_a_number_is_found():
    honest, truth = gradients()
    got = honest.clone()
    got[0, 0, 0, 0] = torch.nan
    with pytest.raises(AssertionError, match="nan"):
        check_gradient.as_good_as_honest(got, honest, truth)


@pytest.mark.parametrize("git", [True, False])
def test_the_commit_that_is_told_goes_before_what_a_repository_says(git, monkeypatch):
    if not git:
        monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setenv("PURIFY_ENGINE_COMMIT", "")  # as the Makefile sets it where nothing was said
    unsaid = commit()
    monkeypatch.setenv("PURIFY_ENGINE_COMMIT", "0123abc")
    assert commit() == "0123abc" != unsaid
    assert git or unsaid is None


class OffByOneRounding(check_graph.Replay):
    """One element of every result is the next float32."""

    def run(self, process, x):
        result = super().run(process, x).clone()
        result.view(-1)[7] = result.view(-1)[7].nextafter(torch.tensor(torch.inf))
        return result


def test_a_graph_that_is_off_by_one_rounding_is_a_failed_check(lines, monkeypatch):
    monkeypatch.setattr(check_graph, "Replay", OffByOneRounding)
    monkeypatch.setattr(check_graph, "REPLAYS", check_graph.REPLAYS[:1])
    monkeypatch.setattr(check_graph, "guides", lambda purifier: {"no": check_graph.NoGuide()})
    status, found = lines(check_graph.main)
    told = [line for line in found if line["kind"] == "check"]
    assert status == 1 and len(told) == 2 + len(check_graph.CORRECTED) and not any(line["ok"] for line in told)
    assert all("1 of 768 elements differ, by" in line["says"] for line in told)


def test_a_purifier_whose_graph_is_off_by_one_rounding_is_a_failed_check(tmp_path, monkeypatch):
    command, _ = begin("checks", parser("check-graph", "d."), ["--results", str(tmp_path), "--toy", "--device", "cpu"])
    monkeypatch.setattr(check_graph, "low_precision", lambda purifier: purifier)  # bfloat16 is slow on CPUs
    check_graph.check_door(command)
    assert command.failed == []
    replays = check_graph.GuidedPurifier.forward

    def off(self, images, **how):
        result = replays(self, images, **how)
        return result.nextafter(torch.tensor(torch.inf)) if self.execution == "graph" else result

    monkeypatch.setattr(check_graph.GuidedPurifier, "forward", off)
    check_graph.check_door(command)
    assert len(command.failed) == 2
