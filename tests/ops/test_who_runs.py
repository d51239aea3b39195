"""Who runs a call: `resolve` says it, a mark on every launcher sees it; an engine that is forced runs the call, or raises."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

from purify_engine import ops
from purify_engine.ops import ENGINES, OPS, Launcher
from purify_engine.ops import _registry as registry
from purify_engine.ops._arguments import Around
from purify_engine.testing.cases import Case, cases
from tests.ops.against_reference import as_called

Ran = list[tuple[str, str]]

names = pytest.mark.parametrize("name", OPS)


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> Ran:
    """(op, engine) of every launcher that runs, in order: what an op is made of comes behind it."""
    noted: Ran = []

    def marked(op: str, engine: str, launcher: Launcher) -> Launcher:
        def run(*args: Any, **kwargs: Any) -> Any:
            noted.append((op, engine))
            return launcher.run(*args, **kwargs)

        return dataclasses.replace(launcher, run=run)

    for op in OPS.values():
        for engine, launcher in op.engines.items():
            if isinstance(launcher, Launcher):
                monkeypatch.setitem(op.engines, engine, marked(op.name, engine, launcher))
    monkeypatch.setattr(registry, "INTERPRETED", False)  # on CPU tensors it is slow, and has tests of its own
    return noted


def doors(name: str) -> list[Callable[..., Any]]:
    """The ways to call an op: through PyTorch's dispatcher, and as networks do."""
    return [getattr(torch.ops.purify, name), as_called if name == "conv3x3" else getattr(ops, name)]


def one_of_each(name: str) -> list[Case]:
    """Of every dtype, layout and variant one case, of varied shapes."""
    kinds: dict[tuple[Any, ...], list[Case]] = {}
    for case in cases(name):
        kinds.setdefault((case.dtype, case.layout, case.variant), []).append(case)
    return [alike[(7 * place) % len(alike)] for place, alike in enumerate(kinds.values())]


@names
def test_what_resolve_says_is_what_runs(name, ran):
    for case in cases(name):
        arguments = case.arguments()
        engine, launch = OPS[name].resolve(*arguments, **case.keywords)
        assert not ran, "to ask launches nothing"
        launch()
        assert ran[0] == (name, engine), case
        for door in doors(name):
            ran.clear()
            door(*arguments, **case.keywords)
            assert ran[0] == (name, engine), case
        ran.clear()


@names
@pytest.mark.parametrize("forced", [*ENGINES, "fused"])
def test_an_engine_that_is_forced_runs_the_call_or_raises_with_the_reason(name, forced, ran):
    op = OPS[name]
    for case in one_of_each(name):
        for door in (op.resolve, *doors(name)):
            ran.clear()
            try:
                with ops.backend(forced):
                    found = door(*case.arguments(), **case.keywords)
            except RuntimeError as refusal:
                assert not ran, f"{case}: nothing runs in its place"
                assert reason_is_told(op, forced, str(refusal)), str(refusal)
                continue
            if door == op.resolve:
                assert found[0] == forced or (forced == "fused" and found[0] != "reference")
            else:
                assert ran[0][0] == name and ran[0][1] == (ran[0][1] if forced == "fused" else forced), case
                assert forced != "fused" or ran[0][1] != "reference"


def reason_is_told(op: registry.Op, forced: str, refusal: str) -> bool:
    if forced in ("cuda", "triton"):
        return refusal == f"purify::{op.name} has no {forced} engine for cpu tensors"
    asked = ("cpp", "torch") if forced == "fused" else (forced,)
    reasons = dict(part.split(": ", 1) for part in refusal.split("; ")[1:])
    declared = {engine: op.engines[engine] for engine in asked if isinstance(op.engines[engine], str)}
    sentences = all(len(reason.split()) > 2 for reason in reasons.values())
    return set(reasons) == set(asked) and declared.items() <= reasons.items() and sentences


@names
def test_autograd_is_recorded_by_the_engine_that_resolve_says(name, ran):
    if name.startswith("philox"):
        return  # words and normals of integers
    for case in one_of_each(name):
        arguments = case.differentiable()
        for door in doors(name)[1:]:
            engine = OPS[name].resolve(*arguments, **case.keywords)[0]
            ran.clear()
            door(*arguments, **case.keywords)
            assert (name, engine) in ran, case


def convolution(frozen: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    x, weight = torch.randn(2, 32, 16, 16), torch.randn(32, 32, 3, 3)
    return x.contiguous(memory_format=torch.channels_last).requires_grad_(), weight.requires_grad_(not frozen)


@pytest.mark.skipif(not ops.capability().cpp, reason="the extension is not built")
def test_filters_that_train_are_convolved_by_pytorch_and_frozen_ones_by_ours(ran):
    for frozen, engine in ((True, "cpp"), (False, "torch")):
        for op in (ops.conv3x3, ops.relu_conv3x3):
            ran.clear()
            op(*convolution(frozen)).sum().backward()
            assert ran[0] == (op.__name__, engine)
    with ops.backend("cpp"), pytest.raises(RuntimeError, match="has no cpp kernel .*; cpp: its filters may change"):
        ops.conv3x3(*convolution(frozen=False))


@pytest.mark.parametrize("recorded", ["image", "filters", "norm", "bias"])
def test_triton_leaves_every_recorded_convolution_to_pytorch(recorded):
    shapes = {"image": (2, 32, 16, 16), "filters": (32, 32, 3, 3), "norm": (32,), "bias": (32,)}
    tensors = {name: torch.ones(shape, requires_grad=name == recorded) for name, shape in shapes.items()}
    norm = ops.Norm(tensors["norm"], torch.zeros(32), None, None, 4, 1e-5)
    declines = sys.modules["purify_engine.ops.conv3x3"]._declines_triton  # the package's name is the function's
    sentence = declines(tensors["image"], tensors["filters"], norm, Around(tensors["bias"]))
    assert sentence == "PyTorch differentiates its own convolution, with nothing computed twice"


def test_the_parts_of_pytorchs_engine_choose_freely(ran):
    x, weight = convolution()
    norm = ops.Norm(torch.ones(32), torch.zeros(32), None, None, 4, 1e-5)
    with ops.backend("torch"), torch.no_grad():
        ops.conv3x3(x, weight, None, norm)
        ops.relu_conv3x3(x, weight)
    free = OPS["group_norm_silu"].resolve(x, *norm)[0]
    inner = OPS["conv3x3"].resolve(x.detach(), weight)[0]
    assert ran == [("conv3x3", "torch"), ("group_norm_silu", free), ("relu_conv3x3", "torch"), ("conv3x3", inner)]


@pytest.mark.skipif(not ops.capability().cpp, reason="the extension is not built")
def test_the_memory_format_is_that_of_who_runs(monkeypatch):
    x, last, as_it_is = torch.zeros(1, 3, 8, 8), torch.channels_last, torch.preserve_format
    assert ops.memory_format(x) == last and ops.memory_format(x.double()) == as_it_is
    for engine, format in (("cpp", last), ("fused", last), ("torch", as_it_is), ("reference", as_it_is)):
        with ops.backend(engine):
            assert ops.memory_format(x) == format
    with torch.inference_mode():
        assert ops.memory_format(torch.zeros(1, 3, 8, 8)) == last
    with ops.backend("cuda"), pytest.raises(RuntimeError, match="has no cuda engine for cpu tensors"):
        ops.memory_format(x)
    monkeypatch.setitem(OPS["conv3x3"].engines, "cpp", "the extension was never built here")
    assert ops.memory_format(x) == as_it_is
