"""A wall-clock budget: the schedule is cut to it, the training ends within it, and runs add up."""

import pytest
import torch

from purify_engine.config import ClassifierTraining
from purify_engine.training.classifier import train_classifier
from purify_engine.training.rates import rate_at
from tests.training.test_loop_state import IMAGES, Stop, interrupt_at, loop_in


class Clock:
    """Two seconds a step: it is moved on by the loss."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def timed(folder, seconds, **changes):
    loop = loop_in(folder, **{"steps": 100, "decay": "linear", **changes})
    clock, loss = Clock(), loop.loss
    loop.seconds, loop.clock, loop.rate = seconds, clock, lambda position: rate_at(position, loop.config)

    def slow(x, y):
        clock.now += 2
        return loss(x, y)

    loop.loss = slow
    return loop


def run(loop, *, resume=False):
    reports = []
    loop.run(IMAGES, None, resume=resume, progress=reports.append)
    return reports


def test_the_rate_falls_to_its_end_within_the_seconds(tmp_path):
    reports = run(timed(tmp_path, 20.0))
    assert [report["step"] for report in reports] == list(range(1, 11))
    assert [report["learning_rate"] / 0.1 for report in reports] == pytest.approx([1 - k / 10 for k in range(10)])
    assert torch.load(tmp_path / "tiny.checkpoint", weights_only=True)["step"] == 10


def test_where_the_steps_are_done_first_time_has_no_say(tmp_path):
    reports = run(timed(tmp_path, 1e6, steps=6))
    assert [report["learning_rate"] / 0.1 for report in reports] == pytest.approx([1 - k / 6 for k in range(6)])


def test_what_is_left_is_told_in_steps_and_seconds(tmp_path, monkeypatch):
    monkeypatch.setattr("purify_engine.training.loop.LossMeter.read", lambda meter: (1.0, 2.0))
    reports = run(timed(tmp_path, 10.0))
    assert [(report["step"], report["steps"], report["seconds_left"]) for report in reports] == [
        (1, 5, 8.0), (2, 5, 6.0), (3, 5, 4.0), (4, 5, 2.0), (5, 5, 0.0),
    ]  # fmt: skip


def test_the_seconds_of_all_runs_add_up(tmp_path):
    with pytest.raises(Stop):
        timed(tmp_path, 20.0).run(IMAGES, None, resume=False, progress=interrupt_at(6))  # the checkpoint is of step 6
    resumed = timed(tmp_path, 20.0)
    resumed.clock.now = 5e6  # the clock of another machine
    reports = run(resumed, resume=True)
    assert [report["step"] for report in reports] == [7, 8, 9, 10]
    assert reports[0]["learning_rate"] / 0.1 == pytest.approx(0.4)


def test_one_step_at_least_is_trained_and_no_budget_is_no_budget(tmp_path):
    assert [report["step"] for report in run(timed(tmp_path, 1e-9))] == [1]
    with pytest.raises(ValueError, match=r"^seconds must be positive, or None, got 0$"):
        run(timed(tmp_path, 0))


def test_a_training_that_ran_out_of_time_is_published(tiny_classifier, stripes, tmp_path):
    config, reports = ClassifierTraining(steps=10**6, batch_size=8, shift=0), []
    train_classifier(*stripes, tiny_classifier, config, tmp_path, seconds=1e-9, progress=reports.append)
    assert [report.get("step") for report in reports] == [1, None]
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".json", ".md", ".safetensors"]
    assert "1 steps of 1,000,000, when its time was over" in (tmp_path / "classifier.md").read_text()
