"""The gradient of purify::conv3x3 by filters that want none: written out, with everything that stands around the convolution."""

from __future__ import annotations

import pytest
import torch

from purify_engine.testing.cases import Case


@pytest.mark.parametrize("gain", [1.0, 0.5])
@pytest.mark.parametrize("upsample", [False, True], ids=["as it is", "upsampled"])
@pytest.mark.parametrize("temb_batch", [1, 2])
def test_gradients_by_frozen_filters_are_right_to_the_second_order(gain, upsample, temb_batch):
    x, weight, *_ = Case("conv3x3", (2, 4, 2, 3), torch.float64, variant="plain").arguments()
    size = (4, 6) if upsample else (2, 3)
    generator = torch.Generator().manual_seed(0)
    shapes = [x.shape, (len(weight),), (temb_batch, len(weight)), (2, len(weight), *size)]
    around = [torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_() for shape in shapes]

    def op(x, bias, temb, residual):
        settings = {"gain": gain, "upsample": upsample}
        return torch.ops.purify.conv3x3(x, weight.detach(), bias, temb=temb, residual=residual, **settings)

    assert torch.autograd.gradcheck(op, around)
    assert torch.autograd.gradgradcheck(op, around)
