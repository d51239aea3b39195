import math

import pytest
import torch

from purify_engine.reference.balls import lengths, projected, steepest_ascent

DELTA = torch.tensor([[3.0, -4.0], [0.3, 0.4], [0.0, 0.0], [-1e-3, 1e-20]], dtype=torch.float64).view(4, 1, 1, 2)


def test_each_image_has_its_own_length():
    assert lengths(DELTA).shape == (4, 1, 1, 1)
    assert lengths(DELTA).flatten().tolist() == pytest.approx([5, 0.5, 1e-12, 1e-3], rel=1e-12)


def test_into_the_linf_ball_every_pixel_goes_by_itself():
    expected = [[0.5, -0.5], [0.3, 0.4], [0, 0], [-1e-3, 1e-20]]
    assert projected(DELTA, "linf", 0.5).flatten(1).tolist() == expected


def test_into_the_l2_ball_images_go_along_their_radius_and_what_lies_inside_stays():
    inside = projected(DELTA, "l2", 1.0)
    torch.testing.assert_close(inside[0].flatten(), torch.tensor([0.6, -0.8], dtype=torch.float64))
    assert torch.equal(inside[1:], DELTA[1:])


@pytest.mark.parametrize("norm, order", [("linf", torch.inf), ("l2", 2)])
def test_the_projection_is_the_nearest_point_of_the_ball(norm, order):
    generator = torch.Generator().manual_seed(0)
    delta = torch.randn(50, 2, 3, 3, generator=generator, dtype=torch.float64)
    nearest = projected(delta, norm, 0.7)
    assert (nearest.flatten(1).norm(order, dim=1) <= 0.7 + 1e-12).all()
    # The nearest point p of a convex set: (delta - p) . (q - p) <= 0 for every q of it.
    others = torch.randn(200, 1, 18, generator=generator, dtype=torch.float64)
    others = 0.7 * others / others.norm(order, dim=2, keepdim=True)
    p = nearest.flatten(1)
    assert (((delta.flatten(1) - p) * (others - p)).sum(2) <= 1e-12).all()


@pytest.mark.parametrize("norm, dual, order", [("linf", 1, torch.inf), ("l2", 2, 2)])
def test_no_direction_of_length_one_rises_faster(norm, dual, order):
    gradient = torch.randn(20, 1, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    direction = steepest_ascent(gradient, norm)
    torch.testing.assert_close(direction.flatten(1).norm(order, dim=1), torch.ones(20, dtype=torch.float64))
    rise = (gradient * direction).flatten(1).sum(1)
    torch.testing.assert_close(rise, gradient.flatten(1).norm(dual, dim=1))  # Hölder's bound


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_where_nothing_slopes_nothing_moves(norm):
    nothing = torch.zeros(2, 1, 3, 3)
    assert torch.equal(steepest_ascent(nothing, norm), nothing) and torch.equal(projected(nothing, norm, 0.1), nothing)
    assert torch.equal(projected(torch.ones(2, 1, 3, 3), norm, 0.0), nothing)


@pytest.mark.parametrize("call", [lambda: steepest_ascent(DELTA, "l1"), lambda: projected(DELTA, "spatial", 1.0)])
def test_another_norm_is_refused(call):
    with pytest.raises(ValueError, match="norm must be linf or l2, got"):
        call()


def test_tiny_gradients_keep_their_direction():
    tiny = torch.tensor([3e-9, -4e-9]).view(1, 1, 1, 2)
    assert steepest_ascent(tiny, "l2").flatten().tolist() == pytest.approx([0.6, -0.8], rel=1e-6)
    assert math.isfinite(steepest_ascent(torch.full((1, 1, 1, 2), 1e-30), "l2").sum())
