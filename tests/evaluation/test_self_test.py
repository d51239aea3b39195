import dataclasses
import math

import pytest
import torch

from purify_engine.evaluation.differences import errors_along
from purify_engine.evaluation.self_test import TOLERANCE, gradient_self_test
from tests.evaluation.worlds import QuadraticPurifier, guided

IMAGES = 0.2 + 0.6 * torch.rand(4, 1, 3, 3, generator=torch.Generator().manual_seed(0))


class WrongGradient(QuadraticPurifier):
    """Its exact mode forgets the guide: the error that the self-test exists for."""

    def configured(self, **changes):
        return WrongGradient(type(self.config)(**{**vars(self.config), **changes, "gradient": "detached_guidance"}))


def test_exact_gradient_passes_and_the_detached_guide_is_caught():
    found = gradient_self_test(QuadraticPurifier(guided(1.0)), IMAGES)
    assert found["passed"] and found["guide_matters"] and found["detached_caught"]
    assert found["exact_error"] < TOLERANCE < found["detached_error"]


def test_a_purifier_that_forgets_its_guide_fails():
    found = gradient_self_test(WrongGradient(guided(1.0)), IMAGES)
    assert not found["passed"] and found["exact_error"] > 1e-2


@pytest.mark.parametrize("scale", [0.0, 1e-3])
def test_where_the_guide_hardly_matters_nothing_has_to_be_caught(scale):
    found = gradient_self_test(QuadraticPurifier(guided(scale)), IMAGES)
    assert found["passed"] and not found["guide_matters"] and found["guide_share"] < 0.05


def test_the_purifier_itself_is_left_as_it_was():
    purifier = QuadraticPurifier(guided(1.0))
    purifier.register_buffer("weight", torch.ones(2))
    gradient_self_test(purifier, IMAGES, num_directions=1)
    assert purifier.weight.dtype == torch.float32


class Functional(QuadraticPurifier):
    """A purifier given as a function of (images, ids, scale, whether the guide's gradient is left out)."""

    def __init__(self, config, function):
        super().__init__(config)
        self.function = function

    def configured(self, **changes):
        return Functional(dataclasses.replace(self.config, **changes), self.function)

    def forward(self, images, *, ids=None, draw=None):
        assert draw == 0
        return self.function(images, ids, self.config.guidance.scale, self.config.gradient == "detached_guidance")


def pull(images, detached):
    term = images.square()
    return term.detach() if detached else term


def test_where_the_guide_matters_and_its_detachment_is_not_caught_the_test_fails():
    """It matters for one image of four, so the median over images does not see it."""

    def function(images, ids, scale, detached):
        return images + scale * (ids == 2).view(-1, 1, 1, 1) * pull(images, detached)

    found = gradient_self_test(Functional(guided(20.0), function), IMAGES)
    assert found["guide_matters"] and not found["detached_caught"] and found["exact_error"] <= TOLERANCE
    assert not found["passed"]


def test_where_the_exact_gradient_is_wrong_it_fails_though_the_guide_does_not_matter():
    def function(images, ids, scale, detached):
        return images * 1.1 - (0.1 * images).detach()

    found = gradient_self_test(Functional(guided(0.0), function), IMAGES)
    assert not found["guide_matters"] and not found["passed"]
    assert found["exact_error"] == pytest.approx(0.1 / 1.1, rel=1e-6)  # the differences say 1, the gradient 1.1


@pytest.mark.parametrize(("scale", "matters"), [(0.045, False), (0.06, True)])
def test_the_guide_matters_from_a_twentieth_of_the_gradient_on(scale, matters):
    """Purified: x + s x sum(w) with a gradient of 1 + s where attached, 1 where detached: a share of s / (1 + s)."""

    def function(images, ids, scale, detached):
        return images + scale * (images.detach() if detached else images)

    found = gradient_self_test(Functional(guided(scale), function), IMAGES)
    assert found["guide_share"] == pytest.approx(scale / (1 + scale), rel=1e-9) and found["guide_matters"] is matters
    assert found["detached_error"] == pytest.approx(scale, rel=1e-4) and found["detached_caught"] and found["passed"]
    assert (found["num_images"], found["num_directions"], found["tolerance"]) == (4, 20, 1e-6)


@pytest.mark.parametrize(("slip", "passes"), [(0.8e-6, True), (1.3e-6, False)])
def test_a_millionth_is_let_pass_and_no_more(slip, passes):
    def function(images, ids, scale, detached):
        return images + slip * (images - images.detach())  # the gradient says 1 + slip, the differences 1

    found = gradient_self_test(Functional(guided(0.0), function), IMAGES)
    assert found["exact_error"] == pytest.approx(slip, rel=0.1) and found["passed"] is passes


@pytest.mark.parametrize(("slip", "caught"), [(0.8e-4, False), (1.3e-4, True)])
def test_a_detachment_is_caught_from_a_ten_thousandth_on(slip, caught):
    def function(images, ids, scale, detached):
        return images + (slip * (images - images.detach()) if detached else 0)

    assert gradient_self_test(Functional(guided(0.0), function), IMAGES)["detached_caught"] is caught


def test_images_are_moved_off_the_ends_of_the_range_so_that_differences_stay_inside():
    seen = []

    def function(images, ids, scale, detached):
        seen.append((images.min().item(), images.max().item(), images.dtype))
        return images.square()

    black_and_white = torch.cat([torch.zeros(1, 1, 3, 3), torch.ones(1, 1, 3, 3)])
    found = gradient_self_test(Functional(guided(0.0), function), black_and_white)
    assert found["passed"] and found["num_images"] == 2
    assert all(0.0099 < low < 0.0101 and 0.9899 < high < 0.9901 for low, high, _ in seen)
    assert {dtype for *_, dtype in seen} == {torch.float64}


def test_every_image_keeps_its_noise_and_every_direction_is_looked_along():
    shown = []

    def function(images, ids, scale, detached):
        shown.append((ids.tolist(), images.detach()))
        return images.sin() * (1 + ids.view(-1, 1, 1, 1))

    gradient_self_test(Functional(guided(0.0), function), IMAGES, num_directions=3)
    ids, moved = shown[-1]
    assert ids == [0, 1, 2, 3] * 6  # three directions, ahead and behind
    ahead, behind = (moved.view(2, 3, 4, 1, 3, 3) - IMAGES.double()) / 1e-6
    torch.testing.assert_close(ahead, -behind, atol=1e-8, rtol=0)
    assert 0.5 < ahead.std() < 1.5 and not torch.allclose(ahead[0], ahead[1], atol=0.1)


def test_another_seed_looks_along_other_directions():
    purifier = QuadraticPurifier(guided(1.0))
    first = gradient_self_test(purifier, IMAGES)
    assert gradient_self_test(purifier, IMAGES, seed=0) == first
    assert gradient_self_test(purifier, IMAGES, seed=1)["detached_error"] != first["detached_error"]


def test_the_share_of_the_guide_is_the_length_of_what_detaching_takes_away():
    """Of the gradient of x + s x mean(x), weighed by the test's own weights: against the derivatives by hand."""
    x = IMAGES.double()
    weights = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    direct = weights * x.mean(dim=(1, 2, 3), keepdim=True)
    through_mean = (weights * x).sum(dim=(1, 2, 3), keepdim=True) / 9
    taken, whole = 2.0 * (direct + through_mean), weights + 2.0 * (direct + through_mean)
    expected = math.sqrt(float(taken.square().sum() / whole.square().sum()))
    found = gradient_self_test(QuadraticPurifier(guided(2.0)), x)
    assert found["guide_share"] == pytest.approx(expected, rel=1e-12)


def test_a_direction_across_the_gradient_is_judged_by_a_thousandth_of_its_length():
    grad = torch.tensor([3.0, 4.0], dtype=torch.float64).view(1, 1, 1, 2)
    across = torch.tensor([4.0, -3.0], dtype=torch.float64).view(1, 1, 1, 1, 2)
    differences = torch.tensor([[1e-3]], dtype=torch.float64)
    assert float(errors_along(grad, across, differences)) == pytest.approx(1e-3 / (1e-3 * 5))
    along = grad[None]
    assert float(errors_along(grad, along, torch.full((1, 1), 24.0))) == pytest.approx(1 / 25)
    assert float(errors_along(0 * grad, along, torch.zeros(1, 1))) == 0
