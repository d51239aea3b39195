import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from purify_engine.config import ClassifierTraining, DiffusionTraining, Perturbation, TradesTraining
from purify_engine.training.classifier import train_classifier
from purify_engine.training.diffusion import train_diffusion
from purify_engine.training.loop import MovingAverage, initialised
from purify_engine.training.rates import rate_at
from purify_engine.training.trades import train_trades

ATTACK = Perturbation(epsilon=0.1, step_size=0.05, num_steps=2)


def pace(steps):
    """Twelve images a step; a report and a checkpoint half-way and at the end."""
    return {"steps": steps, "batch_size": 12, "shift": 1, "report_every": steps // 2, "checkpoint_every": steps // 2}


class Stop(Exception):  # noqa: N818 (a signal, no error)
    pass


def interrupt(report):
    raise Stop


@pytest.fixture(params=["unet", "unet with dropout", "guide", "classifier"])
def trainer(request, tiny_unet, tiny_classifier, stripes):
    """One of the trainers as a function (out_dir, steps, **options) -> model, tiny and quick."""
    images, labels = stripes
    if request.param == "guide":
        train, config = partial(train_trades, images, labels, tiny_classifier), partial(TradesTraining, attack=ATTACK, t_star=100)
    elif request.param == "classifier":
        train, config = partial(train_classifier, images, labels, tiny_classifier), partial(ClassifierTraining, attack=ATTACK)
    else:
        network = replace(tiny_unet, dropout=0.2 if "dropout" in request.param else 0.0)
        train, config = partial(train_diffusion, images, network), partial(DiffusionTraining, warmup_steps=5, learning_rate=1e-3)
    return lambda out, steps, **options: train(config(**pace(steps)), out, **options)


def assert_same_weights(one, other):
    for (name, left), right in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(left, right), name


def test_ten_steps_and_ten_resumed_equal_twenty_bit_for_bit(trainer, tmp_path):
    straight = trainer(tmp_path / "straight", 20)
    with pytest.raises(Stop):
        trainer(tmp_path / "broken", 20, progress=interrupt)
    seen = []
    resumed = trainer(tmp_path / "broken", 20, resume=True, progress=seen.append)
    assert [report["step"] for report in seen if "step" in report] == [20], "it did not start from step 10"
    assert_same_weights(straight, resumed)


def test_a_finished_run_leaves_weights_card_and_configuration_only(trainer, tmp_path):
    trainer(tmp_path, 2)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".json", ".md", ".safetensors", ".svg"]


def test_reports_are_json_and_count_up(trainer, tmp_path):
    seen = []
    trainer(tmp_path, 2, progress=seen.append)
    assert json.loads(json.dumps(seen)) == seen
    assert [report.get("step") for report in seen] == [1, 2, None]
    assert {"network", "steps", "loss", "learning_rate", "images_per_second", "seconds_left"} <= seen[0].keys()
    assert {"network", "figures", "weights"} == seen[-1].keys()


def test_the_callers_random_numbers_are_left_alone(trainer, tmp_path):
    before = torch.get_rng_state()
    trainer(tmp_path, 2)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_changed_configuration_does_not_resume(tiny_classifier, stripes, tmp_path):
    with pytest.raises(Stop):
        train_classifier(*stripes, tiny_classifier, ClassifierTraining(**pace(4)), tmp_path, progress=interrupt)
    changed = ClassifierTraining(**{**pace(4), "batch_size": 8})
    with pytest.raises(ValueError, match=r"'batch_size': \(12, 8\)"):
        train_classifier(*stripes, tiny_classifier, changed, tmp_path, resume=True)


def test_a_diverging_run_says_what_to_do(tiny_classifier, stripes, tmp_path):
    config = ClassifierTraining(**pace(20), learning_rate=1e30)
    with pytest.raises(FloatingPointError, match="lower learning_rate"):
        train_classifier(*stripes, tiny_classifier, config, tmp_path)


def test_the_average_follows_its_recursion():
    model = nn.Linear(1, 1, bias=False)
    average = MovingAverage(model, decay=0.9)
    expected = model.weight.item()
    for step, value in enumerate([1.0, -2.0, 0.5], start=1):
        nn.init.constant_(model.weight, value)
        average.update_parameters(model)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    assert average.module.weight.item() == pytest.approx(expected, abs=1e-6)  # float32, of numbers up to 2


def test_initial_weights_follow_from_the_seed():
    def build():
        return nn.Linear(3, 3)

    assert_same_weights(initialised(build, 1), initialised(build, 1))
    assert not torch.equal(initialised(build, 1).weight, initialised(build, 2).weight)


def test_the_learning_rate_rises_over_the_warmup_and_falls_to_nothing():
    config = ClassifierTraining(steps=100, warmup_steps=10)
    rates = [rate_at(step, config) for step in range(101)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == 1 and rates[100] == pytest.approx(0, abs=1e-12)
    assert rates[:10] == sorted(rates[:10]) and rates[10:] == sorted(rates[10:], reverse=True)
