import json

import pytest

from purify_engine.config import (
    ClassifierTraining,
    DiffusionTraining,
    Perturbation,
    ScheduleConfig,
    TradesTraining,
    from_dict,
    to_dict,
)


@pytest.mark.parametrize(
    "build, argument",
    [
        (lambda: DiffusionTraining(steps=0), "steps"),
        (lambda: DiffusionTraining(batch_size=0), "batch_size"),
        (lambda: DiffusionTraining(t_max=1001), "t_max"),
        (lambda: DiffusionTraining(ema_decay=1.0), "ema_decay"),
        (lambda: DiffusionTraining(gradient_clip=0.0), "gradient_clip"),
        (lambda: DiffusionTraining(seed=-1), "seed"),
        (lambda: ClassifierTraining(learning_rate=0.0), "learning_rate"),
        (lambda: ClassifierTraining(momentum=1.0), "momentum"),
        (lambda: ClassifierTraining(shift=-1), "shift"),
        (lambda: TradesTraining(trade_off=-1.0), "trade_off"),
        (lambda: TradesTraining(t_star=51, schedule=ScheduleConfig(num_timesteps=50)), "t_star"),
        (lambda: TradesTraining(clean_share=1.5), "clean_share"),
        (lambda: TradesTraining(drop_at=2.0), "drop_at"),
        (lambda: Perturbation(norm="l1"), "norm"),
        (lambda: Perturbation(step_size=0.0), "step_size"),
    ],
)
def test_an_impossible_training_is_refused_by_the_name_of_its_argument(build, argument):
    with pytest.raises(ValueError, match=rf"^{argument} must be .*, got "):
        build()


@pytest.mark.parametrize(
    "config",
    [
        DiffusionTraining(t_max=200, schedule=ScheduleConfig(kind="cosine")),
        ClassifierTraining(attack=Perturbation(norm="l2", epsilon=0.5)),
        TradesTraining(t_star=150, attack=Perturbation(num_steps=3)),
    ],
    ids=lambda config: type(config).__name__,
)
def test_a_training_comes_back_from_its_json(config):
    assert from_dict(type(config), json.loads(json.dumps(to_dict(config)))) == config
