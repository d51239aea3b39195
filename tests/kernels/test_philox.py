"""purify::philox and purify::philox_normal in Triton: the reference's words bit for bit, and its normals to a rounding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from purify_engine import ops
from purify_engine.kernels import _philox
from purify_engine.reference import philox
from purify_engine.testing.agreement import assert_agrees
from purify_engine.testing.cases import RANDOM123, cases
from purify_engine.testing.yardstick import assert_within_yardstick
from tests.kernels.triton_runner import DEVICE, moved, run

# No image and three; less than a block of four, whole blocks, a rest; one program and two.
SHAPES = [(images, numel) for images in (0, 3) for numel in (0, 1, 3, 4, 5, 30, 63, 1000)]


@triton.jit
def _block_kernel(out_ptr, counter_ptr, key_ptr):
    """The words of one counter."""
    step, low, high = tl.load(counter_ptr + 1), tl.load(counter_ptr + 2), tl.load(counter_ptr + 3)
    key = tl.load(key_ptr) | (tl.load(key_ptr + 1) << 32)
    block = tl.load(counter_ptr) + tl.zeros((1,), tl.int64)
    w0, w1, w2, w3 = _philox.words(key, low | (high << 32), step, block)
    tl.store(out_ptr + tl.arange(0, 4), _philox.interleaved(w0, w1, w2, w3))


@triton.jit
def _box_muller_kernel(first_ptr, second_ptr, radius_ptr, angle_ptr, SIZE: tl.constexpr):
    place = tl.arange(0, SIZE)
    radius, angle = tl.load(radius_ptr + place).to(tl.uint32), tl.load(angle_ptr + place).to(tl.uint32)
    first, second = _philox._box_muller(radius, angle, first_ptr.dtype.element_ty)
    tl.store(first_ptr + place, first)
    tl.store(second_ptr + place, second)


@pytest.mark.parametrize(("counter", "key", "words"), RANDOM123)
def test_known_answers_of_random123(counter, key, words):
    out = torch.empty(4, dtype=torch.int64, device=DEVICE)
    _block_kernel[(1,)](out, *(torch.tensor(given, device=DEVICE) for given in (counter, key)))
    assert tuple(out.tolist()) == words


@pytest.mark.parametrize("case", [case for case in cases("philox") if case.shape in SHAPES], ids=str)
def test_words_are_those_of_the_reference_bit_for_bit(case):
    (got,) = run(case)
    assert torch.equal(got, philox.philox(*case.arguments()))


@pytest.mark.parametrize("case", [case for case in cases("philox_normal") if case.shape in SHAPES], ids=str)
def test_normals_match_the_reference(case):
    assert_agrees(case, run(case), philox.philox_normal)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_normals_are_right_where_the_radius_is_least_and_an_angle_is_a_quarter_turn(dtype):
    near_one = torch.cat((torch.arange(2**32 - 600, 2**32), 2**32 - 2 ** torch.arange(10, 32)))
    radius = torch.cat((torch.tensor([0, 1, 2, 3, 2**31]), near_one))
    turns = torch.arange(8) * 2**29  # where the quarters meet, and where sine and cosine are 0
    angle = torch.cat((turns, turns - 1, turns + 1)) % 2**32
    words = torch.stack((radius.repeat(len(angle)), angle.repeat_interleave(len(radius))), dim=1)
    size = triton.next_power_of_2(len(words))
    words = torch.cat((words, words[: size - len(words)]))
    first, second = (torch.empty(size, dtype=dtype, device=DEVICE) for _ in range(2))
    _box_muller_kernel[(1,)](first, second, *(moved(column.contiguous()) for column in words.unbind(1)), SIZE=size, num_warps=16)
    honest, truth = box_muller(words.to(dtype), torch), box_muller(words.numpy().astype(np.longdouble), np)
    for got, like, true in zip((first.cpu(), second.cpu()), honest, truth, strict=True):
        assert_within_yardstick(got, like, true)


def box_muller(words, library):
    """The equation of docs/math.md E5, in the precision and by the library given."""
    uniform = words / 2**32
    pi = 4 * np.arctan(np.longdouble(1)) if library is np else torch.pi
    r, theta = library.sqrt(-2 * library.log(uniform[:, 0] + 2.0**-33)), 2 * pi * uniform[:, 1]
    return r * library.cos(theta), r * library.sin(theta)


def test_an_image_gets_the_same_words_in_any_batch():
    key, step = moved(torch.tensor(-3)), moved(torch.tensor(7))
    ids = moved(torch.tensor([0, -1, 2**63 - 1, -(2**63), 5, 2**32]))
    with ops.backend("triton"):
        together = ops.philox_normal(key, ids, step, 10, dtype=torch.float32)
        apart = [ops.philox_normal(key, ids[i : i + 1], step, 10, dtype=torch.float32) for i in range(len(ids))]
    assert torch.equal(torch.cat(apart), together)
    assert len(together.unique(dim=0)) == len(ids)


def test_the_step_counts_in_32_bits():
    key, ids = moved(torch.tensor(1)), moved(torch.arange(2))
    with ops.backend("triton"):
        low, wrapped = (ops.philox(key, ids, moved(torch.tensor(step)), 8) for step in (5, 2**32 + 5))
    assert torch.equal(low, wrapped)
