"""The CUDA extension on the device of its tensors: whichever is the current one, and by one function alone."""

from __future__ import annotations

import ast
import contextlib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from purify_engine.ops import _cuda

OPS = Path(_cuda.__file__).parent


def test_a_kernel_is_queued_on_its_devices_stream_while_that_is_the_current_device(monkeypatch):
    current, seen = [torch.device("cuda", 0)], []

    @contextlib.contextmanager
    def device(wanted):
        current.append(wanted)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=100 + current[-1].index))
    monkeypatch.setattr(_cuda, "extension", SimpleNamespace(kernel=lambda *given: seen.append((current[-1].index, *given))))
    _cuda.launch("kernel", torch.device("cuda", 1), 7, "eight")
    assert seen == [(1, 101, 7, "eight")]
    assert current == [torch.device("cuda", 0)]


def test_a_launch_that_fails_leaves_the_current_device_as_it_was(monkeypatch):
    left = []

    @contextlib.contextmanager
    def device(wanted):
        try:
            yield
        finally:
            left.append(wanted.index)

    def fails(*given):
        raise RuntimeError("purify::kernel did not launch")

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=0))
    monkeypatch.setattr(_cuda, "extension", SimpleNamespace(kernel=fails))
    with pytest.raises(RuntimeError, match="did not launch"):
        _cuda.launch("kernel", torch.device("cuda", 1))
    assert left == [1]


def test_whatever_else_is_asked_of_the_extension_touches_no_device():
    """Its functions that size a workspace; kernels are launched by `_cuda.launch`, which enters the device."""
    asked = set()
    for path in OPS.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "_cuda.extension":
                asked.add(node.attr)
    assert asked == {"group_norm_silu_workspace", "group_norm_silu_backward_workspace"}


def test_triton_kernels_are_launched_by_one_function():
    """`kernel[grid](...)` stands in `Launch.run` alone, which enters the device where there are several."""
    found = {}
    for path in (OPS.parent.parent / "kernels").glob("*.py"):
        calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
        if launches := [call for call in calls if isinstance(call.func, ast.Subscript)]:
            found[path.name] = {ast.unparse(call.func) for call in launches}
    assert found == {"_launch.py": {"self.kernel[self.programs]"}}
