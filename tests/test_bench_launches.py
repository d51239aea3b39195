"""The launches of a guided step, counted without a GPU: few, and exactly those that were written down."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
import torch.nn.functional as F

from bench.core.run import RESULTS
from bench.report import launches as tables
from bench.runs import launches as command
from bench.subjects.kernel_groups import OTHERS, group_of
from bench.subjects.step_launches import CASES, GUIDE, OFF, ON, UNET, UPDATE, Launches, Subject, lines
from purify_engine import ops
from purify_engine.benchmark.networks import GUIDES, NETWORKS
from purify_engine.files import read_json_lines
from purify_engine.models import folding, summed


@pytest.fixture(scope="module")
def subject():
    """DDPM for CIFAR-10 and ResNet-18, at 64 images: what the targets are about."""
    return Subject.of(NETWORKS["ddpm-cifar10"], GUIDES["resnet18"], 64)


def test_a_step_launches_at_most_150_kernels_for_the_unet_and_100_for_the_guide(subject):
    step = subject.step()
    assert step[UNET].total() <= 150
    assert step[GUIDE].total() <= 100
    assert step[UPDATE] == {"_guided_step_kernel": 1}


def test_of_one_image_too_where_no_convolution_is_split():
    """A split one is summed up by another launch."""
    one = Subject.of(NETWORKS["ddpm-cifar10"], GUIDES["resnet18"], 1)
    whole, split = (one.step({**ON, "split_k": on})[UNET] for on in (False, True))
    assert whole.total() <= 150
    assert split.total() == whole.total() + split["_sum_kernel"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_what_is_written_down_is_what_is_launched(case):
    """By groups, so that one more or one less is noticed: `python -m bench launches`, then `make figures`, if it is meant."""
    found = lines(case, ["all on", "all off"])
    written = [line for line in read_json_lines(RESULTS / "launches.jsonl") if line["state"] in ("all on", "all off")]
    about = dict(zip(("network", "guide", "batch"), case, strict=True))
    assert found == [line for line in written if about.items() <= line.items()]


def test_one_pass_more_in_a_block_is_noticed(subject, monkeypatch):
    before = subject.step()
    attended, with_relu = summed._attended, folding.FrozenConv3x3.with_relu
    monkeypatch.setattr(summed, "_attended", lambda block, x: attended(block, x._replace(raw=x.raw.clone())))
    after = subject.step()
    assert after[UNET] - before[UNET] == {"aten::clone": 6} and after[GUIDE] == before[GUIDE]
    monkeypatch.setattr(folding.FrozenConv3x3, "with_relu", lambda conv, x: with_relu(conv, x).clone())
    assert subject.step()[GUIDE] - before[GUIDE] == {"aten::clone": 5}


def counted(work):
    seen = Launches()
    with seen.counting():
        work()
    return seen.launched


def meta(*shape, grad=False):
    x = torch.empty(shape, device="meta", dtype=torch.bfloat16)
    return (x.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else x).requires_grad_(grad)


def test_a_convolution_is_a_launch_and_its_bias_another():
    x, weight, bias = meta(2, 8, 4, 4), meta(8, 8, 3, 3), meta(8)
    assert counted(lambda: F.conv2d(x, weight)) == {"aten::convolution": 1}
    assert counted(lambda: F.conv2d(x, weight, bias)) == {"aten::convolution": 1, "aten::add of a bias": 1}
    assert counted(lambda: F.conv_transpose2d(x, weight)) == {"aten::convolution, transposed, by dgrad": 1}
    assert counted(lambda: F.linear(x.permute(0, 2, 3, 1), weight[:, :, 0, 0], bias)) == {"aten::addmm": 1}


def test_a_convolutions_gradients_are_counted_each():
    x, weight, bias = meta(2, 8, 4, 4, grad=True), meta(8, 8, 3, 3, grad=True), meta(8, grad=True)
    y = F.conv2d(x, weight, bias)
    grad = torch.empty_like(y)
    to = [f"aten::convolution_backward to the {name}" for name in ("input", "weight", "bias")]
    assert counted(lambda: torch.autograd.grad(y, x, grad, retain_graph=True)) == {to[0]: 1}
    assert counted(lambda: torch.autograd.grad(y, (x, weight, bias), grad)) == dict.fromkeys(to, 1)


def test_what_computes_nothing_launches_nothing():
    x = meta(2, 8, 4, 4)
    assert not counted(lambda: (x.permute(0, 2, 3, 1).flatten(1, 2), x[:, 1:], x.detach(), torch.empty_like(x)))
    assert counted(lambda: x.permute(0, 2, 3, 1).contiguous().float()) == {"aten::_to_copy": 1}


def test_passes_are_told_apart():
    x = meta(2, 8, 4, 4)
    assert counted(lambda: (x + x, x + 1, x + x[:, :1])) == {"aten::add of whole tensors": 1, "aten::add": 2}
    assert counted(lambda: F.pad(x, (0, 1, 0, 1))) == {"aten::fill_": 1, "aten::constant_pad_nd": 1}
    assert counted(lambda: F.interpolate(x, scale_factor=2.0)) == {"aten::upsample_nearest2d": 1}


def test_pytorchs_attention_is_one_launch():
    q, k, v = (meta(2, 1, 16, 32) for _ in range(3))
    with ops.switches.switched(library_attention=True):
        assert counted(lambda: ops.attention(q, k, v)) == {"aten::scaled_dot_product_attention": 1}


@pytest.mark.parametrize("recorded", [False, True])
def test_our_ops_are_counted_by_what_they_launch(recorded):
    x, weight = meta(2, 32, 4, 4, grad=recorded), meta(32, 32, 3, 3)
    for _ in range(2):  # the first time filters are kept
        seen = Launches()
        with seen.counting():
            ops.conv3x3(x, weight)
            ops.attention(*(meta(2, 1, 16, 32, grad=recorded) for _ in range(3)))
    assert seen.launched == {"aten::convolution": 1, "_attention_kernel": 1}
    assert seen.ops["attention"] == 1


def test_each_switch_that_saves_launches_does_so_in_the_table(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "CASES", CASES[:1])
    monkeypatch.setattr(command, "lines", lambda case: lines(case, ["all on", "all off", "conv_relu off", "lean_norm off"]))
    assert tables.by_switch(tmp_path) == tables.by_group(tmp_path) == tables.NOT_COUNTED
    assert command.main(["--results", str(tmp_path)]) == 0
    on, off, conv_relu, lean_norm = rows(tables.by_switch(tmp_path))
    assert all(int(all_off) > int(all_on) for all_on, all_off in zip(on[1:3], off[1:3], strict=True)) and on[3] == off[3] == "1"
    assert conv_relu[0] == "conv_relu off" and conv_relu[1] == "–" and int(conv_relu[2]) > 20
    assert lean_norm[1:] == ["–"] * 3
    (norm,) = (row for row in rows(tables.by_group(tmp_path)) if row[0] == "norm")
    assert norm[1].endswith(", 51") and norm[2:] == ["–", "–"]


def rows(text):
    return [line.strip("| ").split(" | ") for line in text.splitlines()][2:]


def test_every_launch_has_a_group(subject):
    """But small arithmetic, which is PyTorch's own."""
    found = Counter()
    for state in (ON, OFF):
        for launched in subject.step(state).values():
            found.update(kernel for kernel in launched if group_of(kernel) == OTHERS)
    assert set(found) <= {f"aten::{name}" for name in ("mul", "sub", "div", "pow", "neg")}
