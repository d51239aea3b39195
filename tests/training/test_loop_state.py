"""What the loop keeps over interruptions, what it reports, and when; on a network of three numbers."""

import math
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from purify_engine.config import ClassifierTraining, ScheduleConfig
from purify_engine.training import loop as loop_module
from purify_engine.training.loop import Loop, MovingAverage, initialised
from purify_engine.training.rates import rate_at

IMAGES = torch.linspace(0, 1, 12).view(12, 1, 1, 1)


class Tiny(nn.Module):
    """A weight, a float buffer and a counter that move at each call in train mode."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.5, -1.0, 2.0]))
        self.register_buffer("mean", torch.zeros(1))
        self.register_buffer("calls", torch.tensor(0))

    def forward(self, x):
        if self.training:
            self.mean.lerp_(x.mean(), 0.1)
            self.calls += 1
        return (x * self.weight).sum(-1)


@dataclass
class Stop(Exception):  # noqa: N818 (a signal, no error)
    step: int


def loop_in(folder, *, average=True, momentum=0.9, **changes):
    settings = {"steps": 12, "batch_size": 5, "shift": 0, "flip": False, "report_every": 1, "checkpoint_every": 3}
    config = ClassifierTraining(**{**settings, **changes})
    model = Tiny()
    return Loop(
        name="tiny",
        model=model,
        network=ScheduleConfig(),
        config=config,
        optimizer=torch.optim.SGD(model.parameters(), momentum=momentum),
        rate=lambda step: 1 / (1 + step),
        loss=lambda x, _: (model(x) - 1 + 0.1 * torch.randn(len(x), 1, 1)).square().mean(),
        out_dir=folder,
        averages={"0.9": MovingAverage(model, 0.9)} if average else {},
    )


def state_of(loop):
    average = {name: value for each in loop.averages.values() for name, value in each.state_dict().items()}
    velocity = loop.optimizer.state_dict()["state"][0]["momentum_buffer"]
    return {**loop.model.state_dict(), **{f"average {name}": value for name, value in average.items()}, "velocity": velocity}


def interrupt_at(step):
    def progress(report):
        if report["step"] == step:
            raise Stop(step)

    return progress


@pytest.mark.parametrize("average", [True, False])
@pytest.mark.parametrize("stop", [1, 3, 7, 11])
def test_stopped_anywhere_and_resumed_is_never_having_stopped(stop, average, tmp_path):
    straight = loop_in(tmp_path / "straight", average=average)
    straight.run(IMAGES, None, resume=False, progress=lambda report: None)
    with pytest.raises(Stop):
        loop_in(tmp_path / "broken", average=average).run(IMAGES, None, resume=False, progress=interrupt_at(stop))
    resumed, steps = loop_in(tmp_path / "broken", average=average), []
    resumed.run(IMAGES, None, resume=True, progress=lambda report: steps.append(report["step"]))
    assert steps == list(range(stop // 3 * 3 + 1, 13)), "it goes on from the last checkpoint, and from nowhere else"
    for name, value in state_of(straight).items():
        assert torch.equal(value, state_of(resumed)[name]), name


def test_a_checkpoint_holds_everything_that_a_step_changes(tmp_path):
    loop = loop_in(tmp_path)
    loop.run(IMAGES, None, resume=False, progress=lambda report: None)
    state = torch.load(loop.checkpoint_path, weights_only=True)
    assert state["step"] == 12
    assert set(state) == {"experiment", "step", "outcome", "model", "optimizer", "averages"}
    assert set(state["model"]) == {"weight", "mean", "calls"} and int(state["model"]["calls"]) == 12
    assert int(state["averages"]["0.9"]["n_averaged"]) == 13, "twelve steps and the initial weights"
    assert torch.equal(state["averages"]["0.9"]["module.weight"], loop.averages["0.9"].module.weight)
    assert torch.equal(state["optimizer"]["state"][0]["momentum_buffer"], state_of(loop)["velocity"])
    assert state["experiment"] == {
        "name": "tiny",
        **vars(ScheduleConfig()),
        **loop.config.__dict__,
        "attack": vars(loop.config.attack),
    }


def test_without_resume_an_older_checkpoint_is_not_read(tmp_path):
    loop_in(tmp_path, steps=3).run(IMAGES, None, resume=False, progress=lambda report: None)
    steps = []
    loop_in(tmp_path, batch_size=4).run(IMAGES, None, resume=False, progress=lambda report: steps.append(report["step"]))
    assert steps[0] == 1


def test_resuming_where_nothing_is_starts_from_the_beginning(tmp_path):
    steps = []
    loop_in(tmp_path).run(IMAGES, None, resume=True, progress=lambda report: steps.append(report["step"]))
    assert steps == list(range(1, 13))


@pytest.mark.parametrize("every, due", [(1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (3, [3, 5]), (5, [5]), (9, [5])])
def test_reports_and_checkpoints_come_every_so_many_steps_and_at_the_end(every, due, tmp_path, monkeypatch):
    saved, reported = [], []
    monkeypatch.setattr(loop_module, "save_checkpoint", lambda path, state: saved.append((path.name, state["step"])))
    loop = loop_in(tmp_path, steps=5, report_every=every, checkpoint_every=1)
    loop.run(IMAGES, None, resume=False, progress=lambda report: reported.append(report["step"]))
    assert reported == due and saved == [("tiny.checkpoint", step) for step in (1, 2, 3, 4, 5)]
    saved.clear()
    loop_in(tmp_path, steps=5, checkpoint_every=every).run(IMAGES, None, resume=False, progress=lambda report: None)
    assert [step for _, step in saved] == due


def test_the_checkpoint_is_written_before_the_report_that_may_stop_the_run(tmp_path):
    with pytest.raises(Stop):
        loop_in(tmp_path).run(IMAGES, None, resume=False, progress=interrupt_at(3))
    assert torch.load(tmp_path / "tiny.checkpoint", weights_only=True)["step"] == 3


def test_a_report_says_how_fast_it_goes_and_how_long_it_takes(tmp_path, monkeypatch):
    readings = iter([(1.25, 0.5), (1.0, 0.25)])
    monkeypatch.setattr(loop_module.LossMeter, "read", lambda meter: next(readings))
    reports = []
    loop_in(tmp_path, steps=8, report_every=4).run(IMAGES, None, resume=False, progress=reports.append)
    assert reports == [
        {
            "network": "tiny",
            "step": 4,
            "steps": 8,
            "loss": 1.25,
            "learning_rate": 0.1 / 4,
            "images_per_second": 10,
            "seconds_left": 2,
        },
        {
            "network": "tiny",
            "step": 8,
            "steps": 8,
            "loss": 1.0,
            "learning_rate": 0.1 / 8,
            "images_per_second": 20,
            "seconds_left": 0,
        },
    ]


def breaking_at(loop, step, value):
    """The loop, whose loss is `value` in that step, counted from 1."""
    loss, seen = loop.loss, []
    loop.loss = lambda x, y: loss(x, y) * 0 + value if seen.append(0) or len(seen) == step else loss(x, y)
    return loop


@pytest.mark.parametrize("loss", [math.nan, math.inf])
@pytest.mark.parametrize("report_every", [1, 4, 12])
def test_a_loss_that_is_no_number_stops_the_run_by_name_step_and_rate(loss, report_every, tmp_path):
    """Also one between two reports, of which the checkpoint that comes first must know."""
    loop = breaking_at(loop_in(tmp_path, report_every=report_every), 5, loss)
    found = {1: 5, 4: 6, 12: 6}[report_every]  # the report of step 5, or the checkpoint of step 6
    rate = 0.1 / found
    with pytest.raises(FloatingPointError) as diverged:
        loop.run(IMAGES, None, resume=False, progress=lambda report: None)
    assert str(diverged.value) == (
        f"tiny: the loss is {loss} at step 5, at a learning rate of {rate:.3g}: lower learning_rate or lengthen warmup_steps; "
        "tiny.checkpoint is kept as of step 3"
    )
    assert torch.load(tmp_path / "tiny.checkpoint", weights_only=True)["step"] == 3


def test_weights_that_are_no_numbers_are_not_saved_where_the_loss_still_is_one(tmp_path):
    loop = loop_in(tmp_path, steps=1, average=False)
    loop.loss = lambda x, _: (loop.model.weight * torch.tensor(3e38)).square().mean().sqrt().clamp(max=1.0)
    with pytest.raises(FloatingPointError, match=r"^tiny: a weight is not finite at step 1, at a learning rate of 0.1: lower"):
        loop.run(IMAGES, None, resume=False, progress=lambda report: None)
    assert not list(tmp_path.iterdir())


def test_labels_go_with_their_images(tmp_path):
    seen, loop = [], loop_in(tmp_path, steps=4, average=False)
    loop.loss = lambda x, y: seen.append((x, y)) or loop.model(x).mean()
    loop.run(IMAGES, torch.arange(12), resume=False, progress=lambda report: None)
    assert all(torch.equal(x, IMAGES[y]) for x, y in seen)
    assert sorted(torch.cat([y for _, y in seen])[:12].tolist()) == list(range(12))


def test_every_step_trains_even_if_the_loss_leaves_eval_mode(tmp_path):
    modes, loop = [], loop_in(tmp_path, steps=3, average=False)
    loop.loss = lambda x, _: modes.append(loop.model.training) or loop.model.eval()(x).mean()
    loop.run(IMAGES, None, resume=False, progress=lambda report: None)
    assert modes == [True] * 3


@pytest.mark.parametrize("other", [{"seed": 1}, {"batch_size": 6}])
def test_another_seed_draws_other_numbers(other, tmp_path):
    ends = []
    for changes in ({}, other, {}):
        loop = loop_in(tmp_path, steps=2, checkpoint_every=9, **changes)
        loop.run(IMAGES, None, resume=False, progress=lambda report: None)
        ends.append(loop.model.weight.detach().clone())
    assert torch.equal(ends[0], ends[2]) and not torch.equal(ends[0], ends[1])


def test_no_two_steps_draw_the_same_numbers(tmp_path):
    drawn, loop = [], loop_in(tmp_path, steps=4, average=False)
    loop.loss = lambda x, _: drawn.append(float(torch.randn(()))) or loop.model(x).mean()
    loop.run(IMAGES, None, resume=False, progress=lambda report: None)
    assert len(set(drawn)) == 4


def test_the_average_is_a_frozen_copy_in_eval_mode_of_weights_and_buffers():
    model = Tiny()
    average = MovingAverage(model, 0.5)
    assert not average.module.training and not average.module.weight.requires_grad
    assert torch.equal(average.module.weight, model.weight), "before the first step it is the initial network"
    before = average.module.weight.clone()
    with torch.no_grad():
        model.weight += 1
        model.mean += 1
        model.calls += 7
    average.update_parameters(model)
    torch.testing.assert_close(average.module.weight, before + 9 / 11)  # it keeps 2/11 of itself after the first step
    torch.testing.assert_close(average.module.mean, torch.tensor([9 / 11]))
    assert int(average.module.calls) == 7 and torch.equal(average.module.weight, average.module.weight.detach())
    assert model.weight.requires_grad and model.training, "the network that is trained is left as it is"


def test_an_old_average_forgets_at_its_decay():
    model = Tiny()
    average = MovingAverage(model, 0.5)
    for _ in range(30):
        average.update_parameters(model)
    before = average.module.weight.clone()
    with torch.no_grad():
        model.weight += 1
    average.update_parameters(model)
    torch.testing.assert_close(average.module.weight - before, torch.full((3,), 0.5))


def test_initial_weights_leave_the_callers_numbers_alone():
    before = torch.get_rng_state()
    initialised(lambda: nn.Linear(3, 3), 1)
    assert torch.equal(torch.get_rng_state(), before)


def test_initial_weights_differ_from_what_the_first_step_draws(tmp_path):
    first = initialised(lambda: nn.ParameterList([torch.randn(4)]), 0)[0]
    drawn, loop = [], loop_in(tmp_path, steps=1, average=False)
    loop.loss = lambda x, _: drawn.append(torch.randn(4)) or loop.model(x).mean()
    loop.run(IMAGES, None, resume=False, progress=lambda report: None)
    assert not torch.equal(first.detach(), drawn[0])


@pytest.mark.parametrize(
    ("step", "steps", "warmup", "factor"),
    [
        (0, 100, 0, 1.0),
        (25, 100, 0, (1 + math.sqrt(0.5)) / 2),
        (50, 100, 0, 0.5),
        (100, 100, 0, 0.0),
        (0, 100, 4, 0.25),
        (2, 100, 4, 0.75),
        (3, 100, 4, 1.0),
        (4, 100, 4, 1.0),
        (52, 100, 4, 0.5),
        (3, 4, 8, 0.5),  # all of it is warm-up
        (8, 8, 8, 1.0),
    ],
)
def test_the_rate_at_points_that_are_known(step, steps, warmup, factor):
    assert rate_at(step, ClassifierTraining(steps=steps, warmup_steps=warmup)) == pytest.approx(factor, abs=1e-12)
