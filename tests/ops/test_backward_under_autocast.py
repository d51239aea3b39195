"""A backward pass under autocast computes what it computes without, for every op: precision is the forward pass's to choose."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from purify_engine import ops
from purify_engine.testing.agreement import as_tuple
from purify_engine.testing.cases import Case

KEY, IDS, STEP = torch.tensor(3), torch.arange(2), torch.tensor(1)
# Sizes at which bfloat16 would show: sums over hundreds of products.
CASES = {
    "q_sample": Case("q_sample", (2, 3, 8, 8), keywords={"net_dtype": torch.float32}),
    "guided_step": Case("guided_step", (2, 3, 8, 8), keywords={"net_dtype": torch.float32}),
    "group_norm_silu": Case("group_norm_silu", (2, 8, 6, 6), variant="scale-shift", num_groups=2),
    "group_norm_silu_backward": Case("group_norm_silu_backward", (2, 8, 6, 6), variant="scale-shift", num_groups=2),
    "attention": Case("attention", (2, 2, 16, 32)),
    "attention_backward": Case("attention_backward", (2, 2, 16, 32)),
    "conv3x3": Case("conv3x3", (2, 16, 8, 8), variant="norm-scale-bias-residual-gain", num_groups=4),
    "conv3x3, bare": Case("conv3x3", (2, 16, 8, 8), variant="bias-up"),
    "conv3x3_backward": Case("conv3x3_backward", (2, 16, 8, 8), variant="up"),
    "relu_conv3x3": Case("relu_conv3x3", (2, 16, 8, 8), variant="line-bias-residual"),
    "relu_conv3x3_backward": Case("relu_conv3x3_backward", (2, 16, 8, 8), variant="line"),
    "to_images": Case("to_images", (2, 3, 8, 8)),
}
engines = pytest.mark.parametrize("engine", [None, "reference"], ids=["fastest", "reference"])
frozen_or_not = pytest.mark.parametrize("frozen", [False, True], ids=["every gradient", "of images alone"])


def forced(engine):
    return ops.backend(engine) if engine else torch.autograd.set_detect_anomaly(False)


def inputs(case, frozen):
    """The arguments, and those of them that want a gradient: all floats, or images [B, C, H, W] but for filters."""
    given = case.differentiable()
    leaves = [value for value in given if isinstance(value, Tensor) and value.requires_grad]
    if frozen:
        for leaf in leaves:
            is_filter = leaf.dim() == 4 and case.op.startswith(("conv", "relu")) and leaf.shape[2:] == (3, 3)
            leaf.requires_grad_(leaf.dim() == 4 and not is_filter)
    return given, [leaf for leaf in leaves if leaf.requires_grad]


def results(case, given):
    outs = as_tuple(getattr(torch.ops.purify, case.op)(*given, **case.keywords))
    return [out for out in outs if out.is_floating_point() and out.requires_grad]


def pulls(outs):
    draw = torch.Generator().manual_seed(1)
    return [torch.randn(out.shape, generator=draw, dtype=torch.float64).to(out.dtype) for out in outs]


def gradients(case, frozen, autocast, order):
    """First gradients, or second ones: of the first's own loss."""
    given, leaves = inputs(case, frozen)
    outs = results(case, given)
    how = {"allow_unused": True, "materialize_grads": True}
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        grads = torch.autograd.grad(outs, leaves, pulls(outs), create_graph=order == 2, **how)
        if order == 1:
            return grads
        recorded = [grad for grad in grads if grad.requires_grad]
        return torch.autograd.grad(recorded, leaves, pulls(recorded), **how) if recorded else grads


def assert_close(found, expected):
    for got, like in zip(found, expected, strict=True):
        assert got.dtype == like.dtype
        assert (got - like).norm() <= 1e-5 * like.norm()


# The second derivative of a rule that is attention's gradient already is made of PyTorch's own products, which it casts itself.
ORDERS = [(name, order) for name in CASES for order in (1, 2) if (name, order) != ("attention_backward", 2)]


@engines
@frozen_or_not
@pytest.mark.parametrize(("name", "order"), ORDERS)
def test_a_backward_pass_under_autocast_is_the_one_without(name, engine, frozen, order):
    with forced(engine):
        assert_close(*(gradients(CASES[name], frozen, autocast, order) for autocast in (True, False)))


@engines
@pytest.mark.parametrize("name", CASES)
def test_a_forward_pass_of_the_op_itself_is_not_cast(name, engine):
    given, _ = inputs(CASES[name], frozen=False)
    with forced(engine), torch.no_grad():
        plain = as_tuple(getattr(torch.ops.purify, CASES[name].op)(*given, **CASES[name].keywords))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            cast = as_tuple(getattr(torch.ops.purify, CASES[name].op)(*given, **CASES[name].keywords))
    assert_close(cast, plain)
