"""One key for each image of a batch: every image gets the noise that it gets alone with its key, to the bit."""

from __future__ import annotations

import pytest
import torch

from purify_engine import ops
from purify_engine.testing.cases import Case
from purify_engine.testing.shapes import DRAWING

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
ENGINES = pytest.mark.parametrize("engine", ["reference", "cpp"])
BATCH = 3


def keyed(op, dtype=torch.float32, of=ops, moved=lambda tensor: tensor):
    """(`op` of `of` as a function of key, ids and images, the key of each image, their ids, the images)."""
    shape = (BATCH, 37) if op.startswith("philox") else (BATCH, 3, 5, 7)
    arguments = map(moved, Case(op, shape, dtype, variant="guided-keys").arguments())
    launch, images = getattr(of, op), ()
    if op.startswith("philox"):
        key, ids, step, numel = arguments
        keywords = {"dtype": dtype} if op == "philox_normal" else {}
    elif op == "q_sample":
        *images, marginal, step, key, ids = arguments
    else:
        *images, rows, _, key, ids = arguments
        step = moved(torch.tensor(1))  # whose noise counts

    def call(key, ids, *images):
        if not images:
            return (launch(key, ids, step, numel, **keywords),)
        return launch(*images, marginal if op == "q_sample" else rows, step, key, ids, net_dtype=torch.float16)

    key[1], ids[2] = key[0].clone(), ids[1].clone()  # images may share a key, or an id
    return call, key, ids, images


def assert_each_image_as_alone(call, key, ids, images):
    together = call(key, ids, *images)
    for i in range(BATCH):
        alone = call(key[i], ids[i : i + 1], *(each[i : i + 1] for each in images))
        assert all(torch.equal(one, whole[i : i + 1]) for one, whole in zip(alone, together, strict=True))
    one_key = call(key[0], ids, *images)
    assert torch.equal(one_key[0][:2], together[0][:2])
    assert not any(torch.equal(one, own) for one, own in zip(one_key[0][2:], together[0][2:], strict=True))


@ENGINES
@DTYPES
@pytest.mark.parametrize("op", DRAWING)
def test_an_image_gets_what_it_gets_alone_with_its_key(op, dtype, engine):
    with ops.backend(engine):
        assert_each_image_as_alone(*keyed(op, dtype))


@ENGINES
def test_keys_may_lie_apart_or_be_the_same_memory(engine):
    call, key, ids, images = keyed("guided_step")
    with ops.backend(engine):
        apart = call(torch.stack((key, key + 1), dim=1)[:, 0], ids, *images)[0]
        assert torch.equal(apart, call(key, ids, *images)[0])
        repeated = call(key[:1].expand(BATCH), ids, *images)[0]
        assert torch.equal(repeated, call(key[0], ids, *images)[0])


@pytest.mark.parametrize("op", ["q_sample", "guided_step"])
def test_the_gradients_are_those_of_one_key(op):
    call, key, ids, images = keyed(op, torch.float64)
    images = [each.detach().requires_grad_() for each in images]
    grads = [torch.autograd.grad(sum(out.double().sum() for out in call(some, ids, *images)), images) for some in (key, key[0])]
    assert all(torch.equal(one, other) for one, other in zip(*grads, strict=True))


@pytest.mark.parametrize("op", ["philox_normal", "guided_step"])
def test_registration_is_sound(op):
    case = Case(op, (2, 6) if op.startswith("philox") else (2, 1, 2, 3), torch.float64, variant="guided-keys")
    keywords = {"dtype": torch.float64} if op == "philox_normal" else {}
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(getattr(torch.ops.purify, op).default, case.arguments(), keywords, test_utils=checks)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_another_number_of_keys_than_of_images_is_refused(count):
    call, key, ids, images = keyed("guided_step")
    with pytest.raises(ValueError, match=rf"^key must be int64 \[\], or \[3\], one for each image, got 'int64 \[{count}\]'$"):
        call(key.repeat(2)[:count], ids, *images)


def test_the_thread_count_does_not_change_a_bit():
    """An image's key is its own wherever a thread begins."""
    key, ids, step = torch.arange(9) - 4, torch.arange(9), torch.tensor(2)
    before, found = torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            with ops.backend("cpp"):
                found.append(ops.philox(key, ids, step, 10_000))
    finally:
        torch.set_num_threads(before)
    with ops.backend("reference"):
        found.append(ops.philox(key, ids, step, 10_000))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
