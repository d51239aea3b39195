"""The user's measurement: all variants at every batch, what does not fit named, ratios within a batch."""

from __future__ import annotations

import pytest
import torch

from purify_engine.benchmark import throughput
from purify_engine.benchmark.networks import TOY_GUIDE, TOY_NETWORKS, random_purifier
from purify_engine.benchmark.throughput import measure
from purify_engine.config import PurifierConfig


@pytest.fixture(scope="module")
def purifier():
    return random_purifier(TOY_NETWORKS["toy-ddpm"], TOY_GUIDE, PurifierConfig(t_star=20, num_steps=2))


def test_every_variant_has_a_point_at_every_batch(purifier):
    told = []
    found = measure(purifier, "toy", [2, 1], 6, told.append)
    assert [(point.batch, point.variant) for point in found.points] == [
        (batch, variant) for batch in (1, 2) for variant in ("engine", "eager fp32", "naive loop")
    ]
    assert tuple(told) == found.points and all(point.timing.n >= throughput.LEAST for point in found.points)
    assert (found.steps, found.precision) == (2, "float32") and found.execution == "graph"


def test_ratios_are_to_eager_pytorch_at_the_same_batch(purifier, monkeypatch):
    seconds = {"engine": 0.5, "eager fp32": 2.0, "naive loop": 4.0}
    timing = {name: throughput.Timing.of([value]) for name, value in seconds.items()}
    monkeypatch.setattr(throughput, "interleaved", lambda variants, *_, **__: {name: timing[name] for name in variants})
    found = measure(purifier, "toy", [4], 1)
    assert [found.speed_up(point) for point in found.points] == [4.0, 1.0, 0.5]
    assert [point.images_per_second for point in found.points] == [8.0, 2.0, 1.0]
    assert [line["speed_up"] for line in found.record()["points"]] == [4.0, 1.0, 0.5]


def test_what_does_not_fit_into_memory_is_said_and_the_others_are_measured(purifier, monkeypatch):
    def too_large(images):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(throughput, "opponents", lambda purifier: {"eager fp32": too_large})
    found = measure(purifier, "toy", [1], 0.1)
    notes = {point.variant: point.note for point in found.points}
    assert notes == {"engine": "", "eager fp32": "out of memory"}
    assert found.speed_up(found.point("engine", 1)) is None


def test_what_does_not_fit_into_the_time_is_left_out_and_said(purifier):
    found = measure(purifier, "toy", [1, 4096], 0.2)
    assert [point.note for point in found.points] == [""] * 3 + ["left out: no time left"] * 3


@pytest.mark.parametrize(("batches", "seconds"), [([0], 1), ([], 1), ([1], 0)])
def test_impossible_requests_are_refused(batches, seconds, purifier):
    with pytest.raises(ValueError, match="must be"):
        measure(purifier, "toy", batches, seconds)
