"""The CUDA extension on an emulated GPU: the kernels and their launchers against the reference, by the yardstick."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor

from purify_engine.ops import OPS, _cuda, capability
from purify_engine.reference import layers, philox, process
from purify_engine.testing.agreement import as_tuple, assert_agrees
from purify_engine.testing.cases import RANDOM123, Case, cases
from purify_engine.testing.shapes import DRAWING
from tests.ops import emulated_extension
from tests.ops.test_keys_of_images import assert_each_image_as_alone, keyed

REFERENCES: dict[str, Callable[..., Any]] = {
    "philox": philox.philox,
    "philox_normal": philox.philox_normal,
    "q_sample": process.q_sample,
    "guided_step": process.guided_step,
    "group_norm_silu": layers.group_norm_silu,
    "group_norm_silu_backward": layers.group_norm_silu_backward,
}
MODULES = {
    "philox": "noise",
    "philox_normal": "noise",
    "q_sample": "process",
    "guided_step": "process",
    "group_norm_silu": "group_norm_silu",
    "group_norm_silu_backward": "group_norm_silu",
}


class Launchers:
    """The launchers before the CUDA kernels, built or not, by the names of the ops and with their schemas' arguments."""

    def __getattr__(self, op: str) -> Callable[..., Any]:
        bundle = OPS[op].bundle or (lambda *given: given)
        return lambda *given, **keywords: in_module(op, f"{op}_cuda")(*bundle(*given), **keywords)


def in_module(op: str, name: str) -> Callable[..., Any]:
    return getattr(import_module(f"purify_engine.ops.{MODULES[op]}"), name)


cuda = Launchers()
HALF, BRAIN, FLOAT, DOUBLE = torch.float16, torch.bfloat16, torch.float32, torch.float64
NORMS = ("group_norm_silu", "group_norm_silu_backward")
# Groups that several blocks share, in vectors of 16 bytes, of 8, and of one element; several groups in a block; a U-Net's own.
WIDE = (
    ((2, 8, 64, 40), 2),
    ((1, 12, 47, 45), 3),
    ((1, 12, 96, 44), 3),
    ((3, 6, 64, 90), 3),
    ((2, 64, 4, 4), 32),
    ((2, 128, 32, 32), 32),
)
NETWORKS = (HALF, BRAIN, FLOAT, DOUBLE)


def more_cases() -> list[Case]:
    """What `testing/cases.py` has no reason for: layouts, precisions and sizes at which these kernels take another path."""
    images = ((2, 3, 8, 6), (1, 3, 5, 3), (2, 4, 6, 6), (2, 1, 4, 4))
    layouts = ("contiguous", "channels_last")
    steps = [
        Case("guided_step", shape, dtype, layout, variant, keywords={"net_dtype": net})
        for shape in images
        for dtype, layout, variant in ((FLOAT, "channels_last", "guided-bfloat16-eps"), (DOUBLE, "channels_last", "guided"))
        for net in NETWORKS
    ]
    samples = [
        Case("q_sample", shape, dtype, keywords={"net_dtype": net})
        for shape in images
        for dtype in (FLOAT, DOUBLE)
        for net in NETWORKS
    ]
    norms = [
        Case(op, shape, dtype, layout, "scale-shift", groups)
        for op in NORMS
        for shape, groups in WIDE
        for dtype in (HALF, BRAIN, FLOAT)
        for layout in layouts
    ]
    return [*steps, *samples, *norms]


EVERY_CASE = [case for op in REFERENCES for case in cases(op)] + more_cases()


def name_of(value: Any) -> str:
    return f"{value.op}-{value}-{value.keywords}" if isinstance(value, Case) else str(value)


class Poison:
    """`_cuda.empty`, full of NaN (-1 where there is none), between two guards that must not change."""

    def __init__(self) -> None:
        self.buffers: list[Tensor] = []

    def __call__(
        self,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> Tensor:
        like = torch.empty(shape, dtype=dtype, device="meta", memory_format=memory_format)
        poison = torch.nan if dtype.is_floating_point else -1
        buffer = torch.full((64 + like.numel() + 64,), poison, dtype=dtype, device=device)
        buffer[:64], buffer[-64:] = 7, 7
        self.buffers.append(buffer)
        return buffer[64:-64].as_strided(like.shape, like.stride(), 64)

    def assert_untouched(self) -> None:
        for buffer in self.buffers:
            assert (buffer[:64] == 7).all() and (buffer[-64:] == 7).all(), "a kernel wrote beyond its output"


@pytest.fixture(scope="module")
def emulated_module(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return emulated_extension.build(tmp_path_factory.mktemp("emulated"))


@pytest.fixture
def emulated(emulated_module: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The launchers before kernels that run on CPU tensors."""
    poison = Poison()
    monkeypatch.setattr(_cuda, "extension", emulated_module)
    monkeypatch.setattr(_cuda, "launch", lambda kernel, device, *arguments: getattr(emulated_module, kernel)(0, *arguments))
    monkeypatch.setattr(_cuda, "empty", poison)
    yield emulated_module
    poison.assert_untouched()


def launched(case: Case) -> Any:
    return getattr(cuda, case.op)(*case.arguments(), **case.keywords)


@pytest.mark.parametrize(("counter", "key", "words"), RANDOM123)
def test_known_answers_of_random123(counter, key, words, emulated):
    def on_device(numbers: tuple[int, ...]) -> Tensor:
        return torch.tensor(numbers).to(torch.int32)

    given, out = (on_device(counter), on_device(key)), torch.empty(4, dtype=torch.int32)
    emulated.philox_block(0, out.data_ptr(), *(numbers.data_ptr() for numbers in given))
    assert torch.equal(out, on_device(words))


@pytest.mark.parametrize("case", EVERY_CASE, ids=name_of)
def test_matches_the_reference(case, emulated):
    got, reference = launched(case), REFERENCES[case.op]
    if case.op == "philox":
        assert torch.equal(got, reference(*case.arguments()))
    else:
        assert_agrees(case, got, reference)


def test_a_grid_has_fewer_rows_than_a_batch_may_have_images(emulated):
    key, ids, step = torch.tensor(5), torch.arange(2**16 + 4), torch.tensor(3)
    assert torch.equal(cuda.philox(key, ids, step, 3), philox.philox(key, ids, step, 3))


@pytest.mark.parametrize("op", [*REFERENCES])
def test_an_empty_batch_launches_nothing(op, monkeypatch):
    monkeypatch.setattr(_cuda, "launch", None)
    case = next(case for case in cases(op) if case.shape[0] == 0)
    assert_agrees(case, launched(case), REFERENCES[op])


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("grad_dtype", [BRAIN, FLOAT], ids=str)
def test_eps_and_grad_are_read_as_they_come(layout, grad_dtype, emulated):
    x_t, eps, grad, *rest = Case("guided_step", (2, 3, 8, 6), FLOAT, layout).arguments()
    as_they_come = cuda.guided_step(x_t, eps.to(BRAIN), grad.to(grad_dtype), *rest, net_dtype=BRAIN)
    widened = cuda.guided_step(x_t.contiguous(), eps.to(BRAIN).float(), grad.to(grad_dtype).float(), *rest, net_dtype=BRAIN)
    assert all(torch.equal(one, other) for one, other in zip(as_they_come, widened, strict=True))


@pytest.mark.parametrize("op", ["philox_normal", "q_sample", "guided_step"])
def test_triton_draws_and_adds_the_same_bits(op, emulated):
    """In float32: which of the two engines a GPU takes changes no image."""
    pytest.importorskip("triton")
    from tests.kernels import triton_runner

    keywords = {"dtype": FLOAT} if op == "philox_normal" else {"net_dtype": HALF}  # Triton's interpreter cuts bfloat16 off
    case = Case(op, (3, 10_003) if op == "philox_normal" else (3, 3, 15, 13), keywords=keywords)
    pairs = zip(triton_runner.run(case), as_tuple(launched(case)), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize("op", ["q_sample", "guided_step", *NORMS])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_memory_that_is_not_aligned_is_no_matter(op, layout, emulated):
    def off_by_one(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.dim() < 4:
            return value
        memory = torch.empty(value.numel() + 1, dtype=value.dtype)
        return memory.as_strided(value.shape, value.stride(), 1).copy_(value)

    case = Case(op, (2, 3, 8, 8), FLOAT, layout, keywords={} if op in NORMS else {"net_dtype": BRAIN})
    got = getattr(cuda, op)(*(off_by_one(value) for value in case.arguments()), **case.keywords)
    assert_agrees(case, got, REFERENCES[op])


@pytest.mark.parametrize(("shape", "groups"), [((9, 128, 32, 32), 32), ((9, 8, 64, 40), 2), ((9, 3, 8, 8), 1)])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_an_image_gets_the_same_bits_in_any_batch(shape, groups, layout, emulated):
    x, weight, bias, *rest = Case("group_norm_silu", shape, BRAIN, layout, num_groups=groups).arguments()
    together = cuda.group_norm_silu(x, weight, bias, *rest)
    assert torch.equal(cuda.group_norm_silu(x[4:5], weight, bias, *rest), together[4:5])
    x_t, eps, grad, rows, step, key, ids = Case("guided_step", shape, FLOAT, layout).arguments()
    together, _ = cuda.guided_step(x_t, eps, grad, rows, step, key, ids)
    alone, _ = cuda.guided_step(x_t[4:5], eps[4:5], grad[4:5], rows, step, key, ids[4:5])
    assert torch.equal(alone, together[4:5])


@pytest.mark.parametrize("dtype", [FLOAT, DOUBLE], ids=str)
@pytest.mark.parametrize("op", DRAWING)
def test_an_image_gets_what_it_gets_alone_with_its_key(op, dtype, emulated):
    call, key, ids, images = keyed(op, dtype, cuda)
    assert_each_image_as_alone(call, key, ids, images)
    apart = torch.stack((key, key + 1), dim=1)[:, 0]
    assert all(torch.equal(one, other) for one, other in zip(call(apart, ids, *images), call(key, ids, *images), strict=True))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", [(2, 8, 16, 16), (1, 8, 64, 40)], ids=str)
def test_a_large_mean_does_not_cancel(shape, layout, emulated):
    x, *rest = Case("group_norm_silu", shape, FLOAT, layout, num_groups=2).arguments()
    shifted = x + 4096  # exact enough: the spread keeps 12 bits
    truth = layers.group_norm_silu(shifted.double(), *(v.double() if isinstance(v, Tensor) else v for v in rest))
    assert (cuda.group_norm_silu(shifted, *rest) - truth).abs().max() < 1e-5 * truth.abs().max()


def test_a_poisoned_image_never_touches_its_batch(emulated):
    x, *rest = Case("group_norm_silu", (3, 8, 64, 40), BRAIN, "channels_last", num_groups=2).arguments()
    clean = cuda.group_norm_silu(x, *rest)
    x[1, 0, 0, 0] = torch.nan
    y = cuda.group_norm_silu(x, *rest)
    assert y[1, :4].isnan().all()
    assert torch.equal(y[[0, 2]], clean[[0, 2]])


@pytest.mark.parametrize("dtype", [BRAIN, FLOAT, DOUBLE], ids=str)
@pytest.mark.parametrize("far", [128.0, 2.0**14, 2.0**100, float("inf")])
def test_silu_is_its_limits_far_out(far, dtype, emulated):
    x, one = torch.zeros(1, 1, 1, 1, dtype=dtype), torch.ones(1, dtype=dtype)
    assert cuda.group_norm_silu(x, one, far * one, None, None, 1, 1e-5).item() == far
    if far < float("inf"):
        assert abs(cuda.group_norm_silu(x, one, -far * one, None, None, 1, 1e-5).item()) < 1e-30


@pytest.mark.parametrize("step", [-1, 4])
@pytest.mark.parametrize("dtype", [FLOAT, DOUBLE], ids=str)
def test_a_step_beyond_the_plan_is_nan(step, dtype, emulated):
    x_t, eps, grad, rows, _, key, ids = Case("guided_step", (2, 3, 4, 4), dtype).arguments()
    x_next, x_net = cuda.guided_step(x_t, eps, grad, rows, torch.tensor(step), key, ids, net_dtype=BRAIN)
    assert x_next.isnan().all() and x_net.isnan().all()


def test_what_the_kernels_do_not_take_is_left_to_the_next_engine(emulated):
    x, *rest = Case("group_norm_silu", (1, 4, 2, 2), FLOAT, num_groups=2).arguments()
    declines, bundle = in_module("group_norm_silu", "_declines_cuda"), OPS["group_norm_silu"].bundle
    assert declines(*bundle(x, *rest)) is None
    assert "16, 32 and 64 bits" in declines(*bundle(x.to(torch.float8_e5m2), *rest))
    vast = torch.empty(1).expand(1, 1, 2**15, 2**15)
    one = torch.ones(1)
    assert "2**30" in declines(*bundle(vast, one, one, None, None, 1, 1e-5))
    key, ids, step = torch.tensor(1), torch.arange(1), torch.tensor(0)
    declines = in_module("guided_step", "_declines_cuda")
    assert "2**30" in declines(vast, vast, None, torch.zeros(1, 4).double(), step, key, ids)
    assert declines(x, x, None, torch.zeros(1, 4).double(), step, key, ids) is None
    assert "16, 32 and 64 bits" in declines(x, x, None, torch.zeros(1, 4).double(), step, key, ids, net_dtype=torch.float8_e5m2)


def test_a_launch_that_fails_is_an_error_with_the_name_of_the_op(emulated):
    with pytest.raises(RuntimeError, match="purify::philox did not launch: invalid configuration"):
        emulated.philox(0, 0, (0, 1, 4, 0, 0, 0))  # a grid of no images


def test_the_table_of_ops_and_the_extension_agree():
    launchers = {name: op.engines["cuda"] for name, op in OPS.items() if name in REFERENCES}
    if _cuda.extension is None:
        assert not capability().cuda_extension
        assert all("nvcc" in str(reason) for reason in launchers.values())
    else:
        assert capability().cuda_extension
        assert _cuda.extension.INTERFACE == _cuda.INTERFACE
        assert {name: launcher.run for name, launcher in launchers.items()} == {
            name: in_module(name, f"{name}_cuda") for name in REFERENCES
        }
        assert all(hasattr(_cuda.extension, name) for name in REFERENCES)


@pytest.mark.skipif(_cuda.extension is None, reason="purify_engine._cuda is not built here: there was no nvcc")
def test_importing_the_extension_needs_no_gpu():
    code = "import purify_engine._cuda as extension; print(extension.group_norm_silu_workspace.__name__)"
    blind = {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=blind)
    assert done.stdout.strip() == "group_norm_silu_workspace", done.stderr
