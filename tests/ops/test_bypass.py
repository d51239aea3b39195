"""Going past PyTorch's dispatcher: the private parts that are asked exist, a missing one is no harm, it can be forbidden."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from unittest import mock

import pytest
import torch

from purify_engine import ops
from purify_engine.cli import doctor
from purify_engine.ops import _bypass
from purify_engine.ops import _registry as registry

X = torch.randn(2, 8, 4, 4, generator=torch.Generator().manual_seed(0)).contiguous(memory_format=torch.channels_last)
NORM = ops.Norm(torch.ones(8), torch.zeros(8), None, None, 2, 1e-5)
CALL = partial(ops.group_norm_silu, X, *NORM)


def is_dispatched(call: Callable[[], torch.Tensor]) -> bool:
    """Whether a call takes PyTorch's dispatcher."""
    with mock.patch.object(registry, "_dispatched", wraps=registry._dispatched) as dispatched:
        call()
    return dispatched.called


def test_every_private_name_exists():
    assert ops.missing() == (), "this version of PyTorch lacks what _bypass.py asks: every op takes its dispatcher"


def test_there_is_one_owner():
    """No other module asks PyTorch whether an operation is observed."""
    root = registry.__file__.rsplit("/", 2)[0]
    found = subprocess.run(
        ["grep", "-rlE", "_len_torch_dispatch_stack|peek_interpreter_stack|_get_tracing_state|_profiler_enabled", root],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert {path.rsplit("/", 1)[1] for path in found.split() if path.endswith(".py")} == {"_bypass.py"}


@pytest.mark.parametrize("name", _bypass.PRIVATE)
def test_where_one_is_missing_every_op_takes_the_dispatcher_and_doctor_warns_once(name, monkeypatch):
    plain, owner = CALL(), torch
    assert not is_dispatched(CALL)
    *path, last = name.split(".")
    for part in path:
        owner = getattr(owner, part)
    monkeypatch.delattr(owner, last)
    assert is_dispatched(CALL) and ops.is_observed()
    assert torch.equal(CALL(), plain)
    assert ops.missing() == (f"torch.{name}",)
    warnings = [finding for finding in (doctor.extension_finding(), doctor.dispatcher_finding()) if "warning" in finding.says]
    assert [finding.name for finding in warnings] == ["dispatcher"] and f"torch.{name}" in warnings[0].says
    assert warnings[0].ok is None, "slower, and as right"


def test_it_can_be_forbidden_for_a_while():
    plain = CALL()
    with ops.through_dispatcher():
        assert ops.is_bypass_forbidden() and is_dispatched(CALL)
        assert torch.equal(CALL(), plain)
        with ops.through_dispatcher():
            pass
        assert ops.is_bypass_forbidden()
        assert "as asked for" in doctor.dispatcher_finding().says
    assert not ops.is_bypass_forbidden() and not is_dispatched(CALL)
    assert "left out" in doctor.dispatcher_finding().says


def test_to_forbid_it_is_a_threads_own():
    seen: list[bool] = []
    with ops.through_dispatcher():
        thread = threading.Thread(target=lambda: seen.append(ops.is_bypass_forbidden()))
        thread.start()
        thread.join()
    assert seen == [False]


def test_what_else_goes_past_the_dispatcher_is_forbidden_too(monkeypatch):
    conv2d = sys.modules["purify_engine.ops.conv2d"]
    weight = torch.randn(4, 8, 3, 3)
    expected = torch.nn.functional.conv2d(X, weight, None, (2, 2), (1, 1))
    monkeypatch.setattr(conv2d, "_convolved", lambda *_: pytest.fail("another operation than the one that was asked for"))
    with ops.through_dispatcher(), torch.no_grad():
        assert torch.equal(ops.conv2d(X, weight, None, (2, 2), (1, 1)), expected)
        together, skip = ops.side_by_side(X, X, NORM._replace(weight=torch.ones(16), bias=torch.zeros(16)))
    assert skip is None and torch.equal(together, torch.cat([X, X], dim=1))


@pytest.mark.parametrize("recorded", [False, True])
def test_what_compiles_a_network_gets_it_whole(recorded):
    """The questions that are asked before going past the dispatcher break no graph, and make Dynamo warn of nothing."""
    weight, norm = torch.randn(8, 8, 3, 3), NORM
    wide = NORM._replace(weight=torch.ones(16), bias=torch.zeros(16))
    kernel = torch.randn(4, 16, 1, 1)

    def network(x: torch.Tensor) -> torch.Tensor:
        y = ops.relu_conv3x3(ops.conv3x3(x, weight, None, norm), weight, residual=x)
        together, skip = ops.side_by_side(y, x, wide)
        return ops.conv1x1(ops.group_norm_silu(together, *wide, skip=skip), kernel)

    x = X.clone().requires_grad_(recorded)
    with torch.set_grad_enabled(recorded):
        expected = network(x)
        got = torch.compile(network, fullgraph=True, backend="eager")(x)
    torch.testing.assert_close(got, expected)
    assert got.requires_grad == recorded


@pytest.mark.parametrize(("value", "forbidden"), [("0", True), ("1", False)])
def test_the_environment_forbids_it(value, forbidden, monkeypatch):
    monkeypatch.setenv("PURIFY_ENGINE_BYPASS", value)
    code = "from purify_engine import ops; print(ops.is_bypass_forbidden())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(forbidden)]
