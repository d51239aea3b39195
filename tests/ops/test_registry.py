"""The registry: which engine runs an op, and what happens when one is forced."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from unittest import mock

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from purify_engine import ops
from purify_engine.ops import _registry as registry
from purify_engine.ops import capability
from purify_engine.testing.cases import cases

ARGUMENTS = (torch.tensor(1), torch.arange(2), torch.tensor(0), 5)


def chosen(op: str) -> str:
    """The engine that an op's first case gets."""
    case = cases(op)[0]
    return registry.OPS[op].resolve(*case.arguments(), **case.keywords)[0]


@pytest.mark.parametrize("op", registry.OPS.values(), ids=lambda op: op.name)
def test_every_op_has_each_engine_or_a_reason_for_doing_without(op):
    assert set(op.engines) == set(registry.ENGINES)
    assert callable(op.reference)
    for engine in op.engines.values():
        assert isinstance(engine, registry.Launcher) or len(engine.split()) > 5


def test_a_cpu_chooses_cpp_where_an_op_has_it():
    assert chosen("guided_step") == "cpp"
    assert chosen("attention") == "reference"
    assert registry.order("mps") == ("torch", "reference")


def test_forcing_holds_inside_the_block_and_nests():
    with ops.backend("reference"):
        assert chosen("philox") == "reference"
        with ops.backend("cpp"):
            assert chosen("philox") == "cpp"
        assert chosen("philox") == "reference"
    assert chosen("philox") == "cpp"


def test_forcing_ends_with_an_error_too():
    with pytest.raises(KeyError), ops.backend("reference"):
        raise KeyError
    assert registry.forced() is None


def test_forcing_belongs_to_its_thread():
    seen = []
    with ops.backend("reference"):
        thread = threading.Thread(target=lambda: seen.append(registry.forced()))
        thread.start()
        thread.join()
    assert seen == [None]


@pytest.mark.parametrize("name", ["triton", "cuda"])
def test_forcing_an_engine_of_another_device_is_an_error(name, monkeypatch):
    monkeypatch.setattr(registry, "INTERPRETED", False)
    with ops.backend(name), pytest.raises(RuntimeError, match=f"purify::philox has no {name} engine for cpu tensors"):
        ops.philox(*ARGUMENTS)


def test_triton_takes_cpu_tensors_under_its_interpreter_only(monkeypatch):
    monkeypatch.setattr(registry, "INTERPRETED", True)
    assert chosen("philox") == "cpp"
    with ops.backend("triton"):
        assert chosen("philox") == "triton"


def test_an_engine_that_declines_leaves_the_call_to_the_next(monkeypatch):
    asked = []
    launcher = registry.Launcher(lambda *_: pytest.fail("declined"), lambda *given: asked.append(given) or "not today")
    monkeypatch.setitem(registry.OPS["philox"].engines, "cpp", launcher)
    assert ops.philox(*ARGUMENTS).shape == (2, 5)
    assert len(asked) == 1
    refusal = "purify::philox has no cpp kernel for these arguments on cpu; cpp: not today"
    with ops.backend("cpp"), pytest.raises(RuntimeError, match=refusal):
        ops.philox(*ARGUMENTS)


def test_fused_takes_a_kernel_or_raises_with_the_reason():
    q = torch.randn(1, 1, 2, 4)
    with ops.backend("fused"):
        ops.philox(*ARGUMENTS)
        with pytest.raises(RuntimeError, match="no fused engine for cpu tensors; cpp: its matrix products"):
            ops.attention_backward(q, q, q, q)
        with pytest.raises(RuntimeError, match="no fused kernel for these arguments on cpu; cpp: its matrix.*switched off"):
            ops.attention(q, q, q)


def test_an_unknown_engine_is_refused():
    sentence = "backend must be one of reference, torch, cpp, cuda, triton, fused, got 'fast'"
    with pytest.raises(ValueError, match=sentence), ops.backend("fast"):
        pass


def test_capability_says_what_this_machine_offers():
    offered = capability()
    assert offered.cpp
    assert offered.instruction_set == offered.instruction_sets[0]
    assert offered.threads == torch.get_num_threads()


class Subclass(torch.Tensor):
    """A user's own tensor."""


def test_a_call_goes_straight_to_its_engine_where_nobody_looks_on():
    x, weight, bias = torch.randn(2, 4, 3, 3), torch.ones(4), torch.zeros(4)
    call = partial(ops.group_norm_silu, x, weight, bias, None, None, 2, 1e-5)
    assert not watched(call)
    parameter = torch.nn.Parameter(weight)
    with torch.no_grad():
        assert not watched(partial(ops.group_norm_silu, x, parameter, bias, None, None, 2, 1e-5))
    assert watched(partial(ops.group_norm_silu, x, parameter, bias, None, None, 2, 1e-5))


def test_whoever_looks_on_sees_the_op():
    x, weight, bias = torch.randn(2, 4, 3, 3), torch.ones(4), torch.zeros(4)
    call = partial(ops.group_norm_silu, x, weight, bias, None, None, 2, 1e-5)
    plain = call()
    with FlopCounterMode(display=False):
        assert watched(call)
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        call()
    assert "purify::group_norm_silu" in {event.key for event in seen.key_averages()}
    with FakeTensorMode() as mode:
        assert isinstance(ops.group_norm_silu(*(mode.from_tensor(t) for t in (x, weight, bias)), None, None, 2, 1e-5), FakeTensor)
    own = x.as_subclass(Subclass)
    assert watched(partial(ops.group_norm_silu, own, weight, bias, None, None, 2, 1e-5))
    traced = torch.jit.trace(lambda image: ops.group_norm_silu(image, weight, bias, None, None, 2, 1e-5), x)
    assert not torch.equal(traced(2 * x + 1), plain) and torch.equal(traced(x), plain)


def watched(call: Callable[[], torch.Tensor]) -> bool:
    """Whether a call passes PyTorch's dispatcher."""
    with mock.patch.object(registry, "_dispatched", wraps=registry._dispatched) as dispatched:
        call()
    return dispatched.called
