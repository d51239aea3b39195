import pytest
import torch

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
