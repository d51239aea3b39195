"""CUDA C++ on a real GPU: every case by the yardstick, the bits of the emulated one, graphs that replay another plan."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from purify_engine import ops
from purify_engine.ops import _cuda
from purify_engine.testing.agreement import as_tuple, assert_agrees
from purify_engine.testing.cases import RANDOM123, Case
from tests.ops import emulated_extension
from tests.ops.test_cuda import EVERY_CASE, REFERENCES, Poison, cuda, name_of

if _cuda.extension is None or not torch.cuda.is_available():
    pytest.skip("needs a GPU and purify_engine._cuda", allow_module_level=True)


def moved(value: Any) -> Any:
    """A tensor on the GPU with its strides, gaps and repetitions."""
    if not isinstance(value, Tensor):
        return value
    memory = torch.empty(0, dtype=value.dtype).set_(value.untyped_storage())
    return memory.cuda().as_strided(value.shape, value.stride(), value.storage_offset())


def run(case: Case) -> tuple[Tensor, ...]:
    with ops.backend("cuda"):
        results = getattr(torch.ops.purify, case.op)(*map(moved, case.arguments()), **case.keywords)
    return tuple(result.cpu() for result in as_tuple(results))


@pytest.mark.parametrize(("counter", "key", "words"), RANDOM123)
def test_known_answers_of_random123(counter, key, words):
    given = [torch.tensor(numbers).to(torch.int32).cuda() for numbers in (counter, key)]
    out = torch.empty_like(given[0])
    _cuda.launch("philox_block", out.device, out.data_ptr(), *(numbers.data_ptr() for numbers in given))
    assert torch.equal(out.cpu(), torch.tensor(words).to(torch.int32))


@pytest.mark.parametrize("case", EVERY_CASE, ids=name_of)
def test_matches_the_reference(case, monkeypatch):
    monkeypatch.setattr(_cuda, "empty", poison := Poison())
    got, reference = run(case), REFERENCES[case.op]
    poison.assert_untouched()
    if case.op == "philox":
        assert torch.equal(got[0], reference(*case.arguments()))
    else:
        assert_agrees(case, got, reference)


@pytest.fixture(scope="module")
def emulated_module(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return emulated_extension.build(tmp_path_factory.mktemp("emulated"))


@pytest.mark.parametrize("op", ["philox_normal", "q_sample", "guided_step"])
def test_a_gpu_rounds_like_the_emulation(op, emulated_module, monkeypatch):
    keywords = {"dtype": torch.float32} if op == "philox_normal" else {"net_dtype": torch.bfloat16}
    case = Case(op, (3, 100_003) if op == "philox_normal" else (3, 3, 32, 32), keywords=keywords)
    on_gpu = run(case)
    monkeypatch.setattr(_cuda, "extension", emulated_module)
    monkeypatch.setattr(_cuda, "launch", lambda kernel, device, *arguments: getattr(emulated_module, kernel)(0, *arguments))
    emulated = as_tuple(getattr(cuda, op)(*case.arguments(), **case.keywords))
    assert all(torch.equal(one, other) for one, other in zip(on_gpu, emulated, strict=True))


def test_a_captured_step_replays_any_row_seed_and_image():
    x_t, eps, grad, rows, step, key, ids = map(moved, Case("guided_step", (4, 3, 8, 8)).arguments())
    step.fill_(0)
    with ops.backend("cuda"):
        ops.guided_step(x_t, eps, grad, rows, step, key, ids, net_dtype=torch.bfloat16)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            replayed = ops.guided_step(x_t, eps, grad, rows, step, key, ids, net_dtype=torch.bfloat16)
        for row in range(len(rows)):
            step.fill_(row)
            key.add_(1)
            ids.mul_(3)
            graph.replay()
            direct = ops.guided_step(x_t, eps, grad, rows, step, key, ids, net_dtype=torch.bfloat16)
            assert all(torch.equal(one, other) for one, other in zip(replayed, direct, strict=True))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_a_captured_norm_replays(layout):
    x, *rest = map(moved, Case("group_norm_silu", (2, 8, 64, 40), torch.bfloat16, layout, num_groups=2).arguments())
    with ops.backend("cuda"), torch.no_grad():
        ops.group_norm_silu(x, *rest)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            replayed = ops.group_norm_silu(x, *rest)
        x.mul_(2).add_(1)
        graph.replay()
        assert torch.equal(replayed, ops.group_norm_silu(x, *rest))


def test_kernels_run_on_the_current_stream():
    x_t, *rest = map(moved, Case("guided_step", (64, 3, 64, 64)).arguments())
    with ops.backend("cuda"):
        expected, _ = ops.guided_step(x_t, *rest)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            late = torch.zeros_like(x_t)
            torch.cuda._sleep(10_000_000)
            late.copy_(x_t)  # a kernel on another stream would read zeros
            got, _ = ops.guided_step(late, *rest)
        stream.synchronize()
    assert torch.equal(got, expected)
