"""The learning rate at points that are known by hand, for every way down."""

import pytest

from purify_engine.config import ClassifierTraining, TradesTraining
from purify_engine.training.rates import rate_at


@pytest.mark.parametrize(
    ("options", "points"),
    [
        ({"decay": "linear"}, {0: 1, 25: 0.75, 50: 0.5, 99: 0.01, 100: 0}),
        ({"decay": "linear", "hold": 0.5, "warmup_steps": 20}, {0: 0.05, 9: 0.5, 19: 1, 49: 1, 50: 1, 75: 0.5, 100: 0}),
        ({"decay": "linear", "hold": 0.1, "warmup_steps": 20}, {19: 1, 20: 1, 60: 0.5, 100: 0}),
        ({"decay": "cosine", "hold": 0.6}, {0: 1, 60: 1, 80: 0.5, 100: 0}),
        ({"decay": "step", "drop_at": 0.8, "warmup_steps": 4}, {1: 0.5, 4: 1, 79: 1, 80: 0.1, 100: 0.1}),
        ({"decay": "linear"}, {12.5: 0.875, 99.9: 0.001}),  # of a time budget, between two steps
    ],
    ids=str,
)
def test_the_rate_at_points_that_are_known_for_every_decay(options, points):
    config = ClassifierTraining(steps=100, **options)
    assert {point: rate_at(point, config) for point in points} == pytest.approx(points, abs=1e-12)


def test_a_guides_rate_falls_to_a_tenth_unless_told_otherwise():
    config = TradesTraining(steps=10)
    assert [rate_at(step, config) for step in range(10)] == [1.0] * 9 + [0.1]
