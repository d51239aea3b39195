"""The forward process, one guided step and the way back to images: numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch

from purify_engine.reference.philox import philox_normal
from purify_engine.reference.process import diffuse, guided_step, q_sample, to_images, update

KEY, IDS, STEP = torch.tensor(5), torch.tensor([7, 2**33 + 1]), torch.tensor(2)
X, EPS, GRAD = torch.randn(3, 2, 3, 2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
MARGINAL = torch.tensor([0.8, 0.6], dtype=torch.float64)
ROWS = torch.tensor([[9.0, 9, 9, 9], [8, 8, 8, 8], [1.5, -0.25, 0.125, 2.0], [7, 7, 7, 7]], dtype=torch.float64)


def normals(step, dtype=torch.float64):
    """Image by image, in NCHW order whatever the layout of the images."""
    drawn = [philox_normal(KEY, IDS[i : i + 1], step, 30, dtype=dtype).reshape(1, 3, 2, 5) for i in range(2)]
    return torch.cat(drawn)


def nhwc(x):
    return x.contiguous(memory_format=torch.channels_last)


def test_one_number_through_every_term():
    x, eps, grad, noise = (torch.full((1, 1, 1, 1), value) for value in (1.0, 2.0, 3.0, 4.0))
    row = torch.tensor([1.0, 10.0, 100.0, 1000.0], dtype=torch.float64)
    assert float(update(x, eps, grad, noise, row)) == 1 + 20 + 300 + 4000
    assert float(update(x, eps, None, noise, row)) == 1 + 20 + 4000
    assert float(diffuse(x, noise, MARGINAL.float())) == pytest.approx(0.8 * 1 + 0.6 * 4)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_an_image_is_noised_by_the_normals_of_its_id_and_step(layout):
    x_t, copy = q_sample(X.contiguous(memory_format=layout), MARGINAL, STEP, KEY, IDS)
    torch.testing.assert_close(x_t, 0.8 * X + 0.6 * normals(STEP))
    assert x_t.is_contiguous() and copy.numel() == 0


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_a_step_takes_its_own_row_and_its_own_normals(layout):
    x_t, eps, grad = (part.contiguous(memory_format=layout) for part in (X, EPS, GRAD))
    found, _ = guided_step(x_t, eps, grad, ROWS, STEP, KEY, IDS)
    torch.testing.assert_close(found, 1.5 * X - 0.25 * EPS + 0.125 * GRAD + 2 * normals(STEP))
    assert found.is_contiguous()
    unguided, _ = guided_step(x_t, eps, None, ROWS, STEP, KEY, IDS)
    torch.testing.assert_close(unguided, 1.5 * X - 0.25 * EPS + 2 * normals(STEP))


def test_a_step_computes_in_the_dtype_of_its_images():
    single = X.float(), EPS.to(torch.bfloat16), GRAD
    found, _ = guided_step(*single, ROWS, STEP, KEY, IDS)
    assert found.dtype == torch.float32
    expected = 1.5 * single[0] - 0.25 * single[1].float() + 0.125 * GRAD.float() + 2 * normals(STEP, torch.float32)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_the_networks_copy_is_channels_last_in_their_dtype_and_memory_of_its_own(dtype):
    grey, *others = (
        part[:, :1] for part in (X, EPS, GRAD)
    )  # one channel is channels_last as it is, and must be copied all the same
    for x_t, copy in (
        q_sample(X, MARGINAL, STEP, KEY, IDS, net_dtype=dtype),
        q_sample(grey, MARGINAL, STEP, KEY, IDS, net_dtype=dtype),
        guided_step(X, EPS, GRAD, ROWS, STEP, KEY, IDS, net_dtype=dtype),
        guided_step(grey, *others, ROWS, STEP, KEY, IDS, net_dtype=dtype),
    ):
        assert copy.dtype == dtype
        assert copy.is_contiguous(memory_format=torch.channels_last)
        assert copy.data_ptr() != x_t.data_ptr()
        assert torch.equal(copy, x_t.to(dtype))


def test_model_space_becomes_images():
    x = torch.tensor([-3.0, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5]).view(1, 1, 1, 7)
    assert to_images(x, torch.float32).flatten().tolist() == [0, 0, 0.25, 0.5, 0.75, 1, 1]
    # 0.25 x 255 = 63.75 and 0.75 x 255 = 191.25; the half of 127.5 goes to the even neighbour
    assert to_images(x, torch.uint8).flatten().tolist() == [0, 0, 64, 128, 191, 255, 255]
    assert to_images(x, torch.uint8).dtype == torch.uint8
    assert to_images(x.double(), torch.float32).dtype == torch.float32
