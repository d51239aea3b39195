"""Images of other sizes than the network's, resized, in tiles or as they are; and images handed on as they come."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.test_purifier import images
from tests.test_purifier_state import EXECUTIONS, MODES, assert_close, gradient, made

ODD = [(13, 20), (9, 7), (8, 17)]


def sized(height, width, count=2, seed=3, dtype=torch.float64):
    """Images of few digits, away from 0 and 1: their purified versions are rarely cut off."""
    pixels = torch.rand(count, 1, height, width, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return 0.3 + 0.4 * pixels


def double(sizes="exact", **options):
    return made("loop", sizes=sizes, clamp=False, num_steps=2, **options).double()


def resized(x, height, width):
    return F.interpolate(x, (height, width), mode="bilinear", align_corners=False)


def by_hand(x, **options):
    """Resize, purify, resize: each of the three as a user would call it."""
    return resized(double(**options)(resized(x, 8, 8)), *x.shape[2:])


@pytest.mark.parametrize("size", ODD, ids=str)
def test_resizing_is_a_resize_before_and_after(size):
    x = sized(*size)
    assert_close(double("resize")(x), by_hand(x), 1e-12)


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "blind"])
def test_every_gradient_passes_through_resizing_as_through_its_parts(mode):
    x = sized(13, 6)
    found = gradient(double("resize", gradient=mode), x)
    assert_close(found, gradient(lambda x: by_hand(x, gradient=mode), x), 1e-12)
    assert found.abs().max() > 0


@EXECUTIONS
@pytest.mark.parametrize("sizes", ["native", "resize", "tile"])
def test_the_networks_own_size_is_taken_as_it_is_bit_for_bit(sizes, execution):
    assert torch.equal(made(execution, sizes=sizes)(images()), made(execution)(images()))


def test_an_image_that_is_not_cut_off_keeps_its_values_and_its_gradient():
    """White images end partly outside [0, 1]."""
    cut, whole, x = made(), made(clamp=False), torch.ones(3, 1, 8, 8)
    assert cut.config != whole.config and "clamp=False" in repr(whole)
    free = whole(x)
    outside = (free < 0) | (free > 1)
    assert 0 < outside.float().mean() < 1
    assert torch.equal(free.clamp(0, 1), cut(x))

    def last_step_alone(model):  # the gradient of what leaves [0, 1] alone
        leaf = x.clone().requires_grad_()
        (grad,) = torch.autograd.grad(model(leaf)[outside].sum(), leaf)
        return grad.abs().max()

    assert last_step_alone(cut) == 0 and last_step_alone(whole) > 0
