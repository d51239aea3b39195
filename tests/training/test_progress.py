import pytest
import torch

from purify_engine.training import progress
from purify_engine.training.progress import LossMeter, silent


def test_the_mean_loss_and_the_time_are_of_the_steps_since_the_last_reading(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: clock[0])
    meter = LossMeter()
    for loss in (1.0, 2.0, 6.0):
        meter.add(torch.tensor(loss, requires_grad=True))
    clock[0] = 101.5
    assert meter.read() == (3.0, 0.5)
    meter.add(torch.tensor(10.0))
    clock[0] = 104.0
    assert meter.read() == (10.0, 2.5)


def test_no_graph_is_kept_from_step_to_step():
    meter = LossMeter()
    meter.add(torch.tensor(1.0, requires_grad=True) * 2)
    assert not meter.total.requires_grad


def test_one_infinite_loss_shows_in_the_mean():
    meter = LossMeter()
    meter.add(torch.tensor(1.0))
    meter.add(torch.tensor(torch.inf))
    assert meter.read()[0] == torch.inf


def test_silence_takes_any_report():
    assert silent({"step": 1}) is None


@pytest.mark.parametrize("count", [1, 2])
def test_a_reading_needs_no_second_step(count):
    meter = LossMeter()
    for _ in range(count):
        meter.add(torch.tensor(0.5))
    loss, seconds = meter.read()
    assert loss == 0.5 and seconds >= 0
