"""The list of attacks, and which of them is run on which defence."""

import dataclasses

import pytest

from purify_engine.config import AttackConfig, EvaluationConfig, GuidanceConfig, PurifierConfig
from purify_engine.evaluation.defences import Defence
from purify_engine.evaluation.suite import BY_EXACT_GRADIENT, CLEAN, UNMASKING, attack_suite, fitted, uses_label
from tests.evaluation.worlds import ToyPurifier, guided, linear_world

CONFIG = EvaluationConfig(epsilon=0.1, epsilon_l2=0.7, max_shift=0.4, num_steps=9, num_eot=5, num_queries=70, seed=3)
MAIN = {"epsilon": 0.1, "num_steps": 9, "num_eot": 5, "seed": 3}
LIGHT = {**MAIN, "num_steps": 4, "num_eot": 3}  # half the steps, half the draws rounded up
CHEAP = {**MAIN, "num_steps": 36}
SPATIAL = {**LIGHT, "kind": "stadv", "norm": "spatial", "epsilon": 0.4}
PROTOCOL = {
    "standard": {"kind": "none", "epsilon": 0.0},
    "transferred": {**CHEAP, "gradient": "blind"},
    "exact": MAIN,
    "straight-through": {**MAIN, "gradient": "straight_through"},
    "exact, margin": {**LIGHT, "loss": "margin"},
    "BPDA": {**MAIN, "gradient": "bpda"},
    "surrogate": {**LIGHT, "gradient": "surrogate"},
    "joint": {**LIGHT, "loss": "joint", "gradient": "straight_through"},
    "guide start": {**LIGHT, "start": "guide", "gradient": "straight_through"},
    "feature matching": {**CHEAP, "loss": "features"},
    "transfer from the guide": {**CHEAP, "surface": "guide"},
    "square": {**MAIN, "kind": "square", "loss": "margin", "num_steps": 70, "num_eot": 1},
    "exact, l2": {**MAIN, "norm": "l2", "epsilon": 0.7, "num_eot": 3},
    "transfer from the guide, l2": {**CHEAP, "surface": "guide", "norm": "l2", "epsilon": 0.7},
    "StAdv": SPATIAL,
    "transfer from the guide, StAdv": {**SPATIAL, "surface": "guide", "num_steps": 36},
}


def test_the_protocol_is_these_sixteen_attacks_in_this_order():
    assert attack_suite(CONFIG) == tuple(AttackConfig(name=name, **settings) for name, settings in PROTOCOL.items())
    assert len(PROTOCOL) == 16 and attack_suite(CONFIG)[0] is CLEAN


def test_the_lightest_attack_has_a_step_and_a_draw():
    light = {attack.name: attack for attack in attack_suite(EvaluationConfig(num_steps=1, num_eot=1))}["surrogate"]
    assert (light.num_steps, light.num_eot) == (1, 1)


def test_every_attack_that_shows_masking_is_of_the_protocol():
    assert {*BY_EXACT_GRADIENT, *UNMASKING} <= set(PROTOCOL)
    assert BY_EXACT_GRADIENT == ("exact", "exact, margin", "exact, l2", "StAdv")
    assert UNMASKING == ("transferred", "straight-through", "BPDA", "surrogate", "square", "transfer from the guide")


def defence(**guidance):
    classifier, _, _ = linear_world()
    config = PurifierConfig(t_star=10, guidance=GuidanceConfig(**{"scale": 1.0, **guidance}))
    return Defence("d", classifier, ToyPurifier(config), guide=classifier)


def run_on(row):
    return {attack.name: run for attack in attack_suite(CONFIG) if (run := fitted(attack, row)) is not None}


def test_a_purifier_that_hides_an_argmax_gets_every_attack_as_it_is():
    assert list(run_on(defence()).values()) == list(attack_suite(CONFIG))


@pytest.mark.parametrize("guidance", [{"pseudo_label": "soft"}, {"label_weight": 0.0}, {"pseudo_label": "none"}], ids=str)
def test_without_a_hidden_argmax_straight_through_is_the_exact_gradient(guidance):
    runs, suite = run_on(defence(**guidance)), {attack.name: attack for attack in attack_suite(CONFIG)}
    assert runs.keys() == PROTOCOL.keys() - {"straight-through"}
    for name in ("joint", "guide start"):
        assert runs.pop(name) == dataclasses.replace(suite.pop(name), gradient="exact")
    assert all(run == suite[name] for name, run in runs.items())


GUIDE = {"joint", "guide start", "feature matching"} | {f"transfer from the guide{norm}" for norm in ("", ", l2", ", StAdv")}


def test_without_a_guide_there_is_none_to_attack():
    row = dataclasses.replace(defence(), guide=None)
    assert run_on(row).keys() == PROTOCOL.keys() - GUIDE - {"straight-through"}


def test_a_deterministic_defence_gets_its_draws_as_steps():
    classifier, _, _ = linear_world()
    runs, suite = run_on(Defence("plain", classifier)), {attack.name: attack for attack in attack_suite(CONFIG)}
    assert runs.keys() == PROTOCOL.keys() - GUIDE - {"straight-through", "BPDA", "surrogate"}
    assert runs.pop("square") == suite["square"]
    for name, run in runs.items():
        steps = suite[name].num_steps * suite[name].num_eot
        assert run == dataclasses.replace(suite[name], num_steps=steps, num_eot=1)


@pytest.mark.parametrize(
    ("guidance", "uses"),
    [
        ({}, True),
        ({"scale": 0.0}, False),
        ({"label_weight": 0.0}, False),
        ({"label_weight": 0.1, "scale": 0.1}, True),
        ({"pseudo_label": "soft"}, False),
        ({"pseudo_label": "none"}, False),
    ],
    ids=str,
)
def test_an_argmax_is_hidden_where_a_pseudo_label_weighs(guidance, uses):
    row = defence(**guidance)
    assert uses_label(row) is uses
    assert uses_label(dataclasses.replace(row, guide=None)) is False
    assert uses_label(dataclasses.replace(row, purifier=None)) is False


def test_a_guided_config_hides_its_argmax_by_default():
    assert guided(1.0).guidance.pseudo_label == "pseudo"
