"""Values to rounding where other tests ask for equal bits: any number of threads, any batch, beside a poisoned image, every path.

A processor, or a library's other version, may round otherwise and turn those red; what is really wrong must show here.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from purify_engine import ops
from purify_engine.reference import layers, philox, process
from purify_engine.testing.cases import Case

DRAW = torch.Generator().manual_seed(0)
KEY, STEP = torch.tensor(7), torch.tensor(1)


def floats(*shape):
    return torch.randn(shape, generator=DRAW)


def nhwc(x):
    return x.contiguous(memory_format=torch.channels_last)


X, FILTERS, BIAS = nhwc(floats(3, 32, 16, 16)), floats(48, 32, 3, 3), floats(48)
NORM = floats(32), floats(32), floats(3, 32), floats(3, 32)
GRAD, ROWS, IDS = floats(3, 48, 16, 16), torch.randn(3, 4, generator=DRAW).double(), torch.tensor([5, 2**40, -3])
# Each: the op on images and what goes with them row by row, and its specification; the last are the same for every image.
OPS = {
    "conv3x3": (ops.conv3x3, layers.conv3x3, (X,), (FILTERS, BIAS)),
    "conv3x3_backward": (ops.conv3x3_backward, layers.conv3x3_backward, (GRAD,), (FILTERS,)),
    "relu_conv3x3": (ops.relu_conv3x3, layers.relu_conv3x3, (X,), (FILTERS, BIAS, *NORM[:2])),
    "relu_conv3x3_backward": (ops.relu_conv3x3_backward, layers.relu_conv3x3_backward, (GRAD, X), (FILTERS,)),
    "conv2d": (ops.conv2d, F.conv2d, (X,), (FILTERS, BIAS, (2, 2), (1, 1))),
    "conv1x1": (ops.conv1x1, F.conv2d, (X,), (FILTERS[:, :, :1, :1], BIAS)),
    "attention": (ops.attention, layers.attention, (floats(3, 2, 9, 8), floats(3, 2, 7, 8), floats(3, 2, 7, 8)), ()),
    "to_images": (ops.to_images, process.to_images, (X,), (torch.float32,)),
}
names = pytest.mark.parametrize("name", OPS)


def doubled(values):
    return [v.double() if isinstance(v, torch.Tensor) and v.is_floating_point() else v for v in values]


def assert_right(found, truth):
    assert (found.detach().double() - truth).norm() <= 1e-5 * truth.norm()


def truth_of(name):
    _, specification, images, rest = OPS[name]
    return specification(*doubled(images), *doubled(rest)).double()


@pytest.fixture(params=[1, 2, 3, 8], ids=lambda count: f"{count} threads")
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@names
def test_any_number_of_threads(name, threads):
    op, _, images, rest = OPS[name]
    assert_right(op(*images, *rest), truth_of(name))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_any_number_of_threads_for_norms_and_steps(threads, layout):
    x = X.contiguous(memory_format=layout)
    assert_right(ops.group_norm_silu(x, *NORM, 4, 1e-5), layers.group_norm_silu(*doubled((x, *NORM)), 4, 1e-5))
    backward = ops.group_norm_silu_backward(x, x, *NORM, 4, 1e-5)
    for found, truth in zip(backward, layers.group_norm_silu_backward(*doubled((x, x, *NORM)), 4, 1e-5), strict=True):
        assert_right(found, truth)
    given = x, x + 1, x - 1, ROWS, STEP, KEY, IDS
    assert_right(ops.guided_step(*given)[0], process.guided_step(*doubled(given))[0])
    noised = x, torch.tensor([0.8, 0.6]).double(), STEP, KEY, IDS
    assert_right(ops.q_sample(*noised)[0], process.q_sample(*doubled(noised))[0])


@names
def test_an_image_alone_is_what_it_is_in_a_batch(name):
    op, _, images, rest = OPS[name]
    alone = [op(*(part[i : i + 1] for part in images), *rest) for i in range(3)]
    assert_right(torch.cat(alone), truth_of(name))


def test_an_image_alone_is_normed_and_stepped_as_in_a_batch():
    per_image = [(X[i : i + 1], *NORM[:2], *(part[i : i + 1] for part in NORM[2:])) for i in range(3)]
    found = torch.cat([ops.group_norm_silu(*given, 4, 1e-5) for given in per_image])
    assert_right(found, layers.group_norm_silu(*doubled((X, *NORM)), 4, 1e-5))
    stepped = []
    for i in range(3):
        floats_of_one = (part[i : i + 1] for part in (X, X + 1, X - 1))
        stepped.append(ops.guided_step(*floats_of_one, ROWS, STEP, KEY, IDS[i : i + 1])[0])
    assert_right(torch.cat(stepped), process.guided_step(*doubled((X, X + 1, X - 1, ROWS, STEP, KEY, IDS)))[0])


@names
def test_a_poisoned_image_leaves_the_others_right(name):
    op, _, images, rest = OPS[name]
    poisoned = [part.clone(memory_format=torch.preserve_format) for part in images]
    for part in poisoned:
        part[1] = torch.nan
    found = op(*poisoned, *rest)
    assert found[1].isnan().any()
    assert_right(found[[0, 2]], truth_of(name)[[0, 2]])


@names
@pytest.mark.parametrize("engine", [None, "reference"], ids=["fastest", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_every_precision_and_layout_on_every_path(name, engine, dtype, layout):
    op, _, images, rest = OPS[name]
    given = [part.to(dtype).contiguous(memory_format=layout) for part in images]
    rest = [part.to(dtype) if isinstance(part, torch.Tensor) else part for part in rest]
    with ops.backend(engine) if engine else torch.no_grad():
        found = op(*given, *rest)
    rounding = {torch.float64: 1e-6, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]  # of float32 numbers, all of them
    truth = truth_of(name)
    assert (found.double() - truth).norm() <= rounding * truth.norm()


@pytest.mark.parametrize("name", ["conv3x3", "relu_conv3x3", "conv2d", "conv1x1"])
@pytest.mark.parametrize("trains", [0, 1, 2], ids=["images", "filters", "bias"])
def test_gradients_to_what_trains_and_to_what_does_not(name, trains):
    op, specification, images, rest = OPS[name]
    found = []
    for function, given in ((op, (*images, *rest)), (specification, doubled((*images, *rest)))):
        given = [part.clone() if isinstance(part, torch.Tensor) else part for part in given]
        leaf = given[trains].requires_grad_()
        y = function(*given)
        pull = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
        found.append(torch.autograd.grad((pull * y).sum(), leaf)[0])
    assert_right(*found)


def test_two_images_side_by_side_are_the_two_together():
    skip = nhwc(floats(3, 16, 16, 16))
    weight, bias, filters = floats(48), floats(48), floats(11, 48, 1, 1)
    together = torch.cat([X, skip], dim=1).double()
    with torch.no_grad():
        assert ops.side_by_side(X, skip, ops.Norm(weight, bias, None, None, 6, 1e-5)) == (X, skip)
        normed = ops.group_norm_silu(X, weight, bias, None, None, 6, 1e-5, skip=skip)
        convolved = ops.conv1x1(X, filters, None, skip)
    assert_right(normed, layers.group_norm_silu(together, weight.double(), bias.double(), None, None, 6, 1e-5))
    assert_right(convolved, F.conv2d(together, filters.double()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_normals_of_any_batch_and_number_of_threads(dtype, threads):
    key, ids, step, numel = Case("philox_normal", (3, 999)).arguments()
    found = torch.cat([ops.philox_normal(key, part, step, numel, dtype=dtype) for part in ids.split(2)])
    truth = philox.philox_normal(key, ids, step, numel, dtype=torch.float64)
    # near r = 0 the rounding of u to 24 bits costs up to sqrt(2**-24) of r
    assert (found.double() - truth).abs().max() < 2.5e-4 and (found.double() - truth).abs().median() < 1e-7
