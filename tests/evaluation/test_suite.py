"""The list of attacks, and which of them is run on which defence."""

import dataclasses
import sys

import pytest
import torch

from purify_engine.config import AttackConfig, ClassifierConfig, EvaluationConfig, GuidanceConfig, PurifierConfig
from purify_engine.evaluation.defences import GUIDE_ALONE, Defence
from purify_engine.evaluation.suite import BY_EXACT_GRADIENT, CLEAN, UNMASKING, attack_suite, fitted, known_attacks, uses_label
from purify_engine.foreign import NotInstalledError
from tests.evaluation.worlds import ToyPurifier, guided, linear_world

CONFIG = EvaluationConfig(
    epsilon=0.1, epsilon_l2=0.7, max_shift=0.4, num_steps=9, num_eot=5, refine_steps=2, refine_eot=7, num_queries=70, seed=3
)
PLAIN = {"epsilon": 0.1, "num_steps": 9, "num_eot": 5, "seed": 3}
CLIMB = {"loss": "margin", "margin_cap": 1.0, "momentum": 0.75, "decay": "cosine"}
MAIN = {**PLAIN, **CLIMB, "refine_steps": 2, "refine_eot": 7}
HALF = {"num_steps": 4, "num_eot": 3}  # half the steps, half the draws rounded up
LIGHT = {**PLAIN, **CLIMB, **HALF, "refine_eot": 7}
CHEAP = {**PLAIN, **CLIMB, "num_steps": 36, "refine_eot": 7}
APGD = {**PLAIN, **HALF, "kind": "apgd"}
SPATIAL = {**PLAIN, **HALF, "kind": "stadv", "norm": "spatial", "epsilon": 0.4}
L2 = {"norm": "l2", "epsilon": 0.7}
QUICK = {
    "standard": {"kind": "none", "epsilon": 0.0},
    "transferred": {**CHEAP, "gradient": "blind"},
    "exact": MAIN,
    "BPDA": {**MAIN, "gradient": "bpda"},
    "preview": {**MAIN, "gradient": "preview"},
    "transfer from the guide": {**CHEAP, "surface": "guide"},
}
STANDARD = QUICK | {
    "straight-through": {**MAIN, "gradient": "straight_through"},
    "exact, CE": {**PLAIN, **HALF},
    "APGD": APGD,
    "DiffHammer": {**LIGHT, "kind": "diffhammer", "margin_cap": None, "num_eot": 5},
    "surrogate": {**LIGHT, "gradient": "surrogate"},
    "preview start": {**LIGHT, "start": "preview"},
    "DDIM": {**LIGHT, "gradient": "ddim"},
    "joint": {**LIGHT, "loss": "joint", "gradient": "straight_through"},
    "guide start": {**LIGHT, "start": "guide_worst", "gradient": "straight_through"},
    "feature matching": {**CHEAP, "loss": "features"},
    "transfer from the guide, APGD-T": {**APGD, "surface": "guide", "loss": "dlr", "targets": 9, "num_steps": 9},
    "transfer from others": {**CHEAP, "surface": "others"},
    "square": {**PLAIN, "kind": "square", "loss": "margin", "num_steps": 70, "num_eot": 1},
    "low frequency": {**LIGHT, "kind": "low_frequency"},
    "exact, l2": {**MAIN, **L2, "num_eot": 3, "refine_steps": 0},
    "transfer from the guide, l2": {**CHEAP, **L2, "surface": "guide"},
    "StAdv": SPATIAL,
    "transfer from the guide, StAdv": {**SPATIAL, "surface": "guide", "num_steps": 36},
}
THOROUGH = STANDARD | {
    "exact, targeted": {**LIGHT, "targets": 3},
    "APGD, DLR": {**APGD, "loss": "dlr"},
    "APGD-T": {**APGD, "loss": "dlr", "targets": 3},
    "SPSA": {**PLAIN, "kind": "spsa", "loss": "margin"},
    "APGD, l2": {**APGD, **L2},
    "transfer from others, APGD": {**APGD, "surface": "others", "num_steps": 36},
}
AUTOATTACK = {
    "autoattack": {**PLAIN, "kind": "autoattack", "version": "standard"},
    "autoattack-rand": {**PLAIN, "kind": "autoattack", "version": "rand"},
}
SUITES = {"quick": QUICK, "standard": STANDARD, "thorough": THOROUGH}


def written(settings):
    return {name: AttackConfig(name=name, **how) for name, how in settings.items()}


@pytest.mark.parametrize("name", SUITES)
def test_a_suite_is_these_attacks_the_clean_images_first(name):
    suite = attack_suite(dataclasses.replace(CONFIG, suite=name))
    assert {attack.name: attack for attack in suite} == written(SUITES[name]) and len(suite) == len(SUITES[name])
    assert suite[0] is CLEAN


def test_the_standard_suite_is_run_unless_another_is_asked_for():
    assert attack_suite(CONFIG) == attack_suite(dataclasses.replace(CONFIG, suite="standard"))


def test_every_attack_has_a_name_and_autoattack_is_run_only_where_it_is_asked_for():
    assert known_attacks(CONFIG) == written(THOROUGH | AUTOATTACK)


def test_the_lightest_attack_has_a_step_and_a_draw():
    light = {attack.name: attack for attack in attack_suite(EvaluationConfig(num_steps=1, num_eot=1))}["surrogate"]
    assert (light.num_steps, light.num_eot) == (1, 1)


def test_every_attack_that_shows_masking_is_of_the_thorough_suite_or_of_earlier_results():
    assert {*BY_EXACT_GRADIENT, *UNMASKING} <= set(THOROUGH) | {"exact, margin"}
    known = known_attacks(CONFIG)
    for name in set(BY_EXACT_GRADIENT) - {"exact, margin"}:
        assert (known[name].surface, known[name].gradient, known[name].start) == ("defence", "exact", "random")
    for name in UNMASKING:
        assert known[name].surface != "defence" or known[name].gradient != "exact" or known[name].kind in ("square", "spsa")


def defence(**guidance):
    classifier, _, _ = linear_world()
    config = PurifierConfig(t_star=10, guidance=GuidanceConfig(**{"scale": 1.0, **guidance}))
    return Defence("d", classifier, ToyPurifier(config), guide=classifier, others=(classifier,))


def run_on(row):
    return {attack.name: run for attack in attack_suite(CONFIG) if (run := fitted(attack, row)) is not None}


def test_a_purifier_that_hides_an_argmax_gets_every_attack_as_it_is():
    assert list(run_on(defence()).values()) == list(attack_suite(CONFIG))


@pytest.mark.parametrize("guidance", [{"pseudo_label": "soft"}, {"label_weight": 0.0}, {"pseudo_label": "none"}], ids=str)
def test_without_a_hidden_argmax_straight_through_is_the_exact_gradient(guidance):
    runs, suite = run_on(defence(**guidance)), {attack.name: attack for attack in attack_suite(CONFIG)}
    assert runs.keys() == STANDARD.keys() - {"straight-through"}
    for name in ("joint", "guide start"):
        assert runs.pop(name) == dataclasses.replace(suite.pop(name), gradient="exact")
    assert all(run == suite[name] for name, run in runs.items())


FROM_GUIDE = {f"transfer from the guide{norm}" for norm in ("", ", l2", ", StAdv", ", APGD-T")}
GUIDE = {"joint", "guide start", "feature matching"} | FROM_GUIDE


def test_without_a_guide_there_is_none_to_attack():
    row = dataclasses.replace(defence(), guide=None)
    assert run_on(row).keys() == STANDARD.keys() - GUIDE - {"straight-through"}


THROUGH_A_PURIFIER = {"BPDA", "surrogate", "preview", "preview start", "DDIM"}


def as_steps(attack):
    """The attack with its draws as so many more steps."""
    if attack.kind in ("none", "square"):
        return attack
    steady = dataclasses.replace(attack, num_steps=attack.num_steps * attack.num_eot, num_eot=1)
    refined = {"refine_steps": attack.refine_steps * attack.refine_eot, "refine_eot": 1}
    return dataclasses.replace(steady, **refined) if attack.refine_steps else steady


def test_a_deterministic_defence_gets_its_draws_as_steps():
    classifier, _, _ = linear_world()
    runs, suite = run_on(Defence("plain", classifier)), {attack.name: attack for attack in attack_suite(CONFIG)}
    assert runs.keys() == STANDARD.keys() - GUIDE - THROUGH_A_PURIFIER - {"straight-through", "transfer from others"}
    assert all(run == as_steps(suite[name]) for name, run in runs.items())


def test_fixed_noise_is_deterministic_and_attacked_through_its_purifier():
    row = defence()
    row = dataclasses.replace(row, purifier=row.purifier.configured(noise="fixed"))
    assert list(run_on(row).values()) == [as_steps(attack) for attack in attack_suite(CONFIG)]


def test_what_is_fitted_to_a_defence_already_stays_as_it_is():
    classifier, _, _ = linear_world()
    fixed = dataclasses.replace(defence(), purifier=defence().purifier.configured(noise="fixed"))
    for row in (defence(), fixed, defence(pseudo_label="soft"), Defence("plain", classifier)):
        assert all(fitted(run, row) == run for run in run_on(row).values())


def test_attacks_on_the_guide_meet_the_guide_alone_as_attacks_on_itself():
    classifier, _, _ = linear_world()
    runs, suite = run_on(Defence(GUIDE_ALONE, classifier)), {attack.name: attack for attack in attack_suite(CONFIG)}
    for name in FROM_GUIDE:
        assert runs[name] == as_steps(dataclasses.replace(suite[name], surface="defence"))
    assert runs.keys() - FROM_GUIDE == run_on(Defence("plain", classifier)).keys()


class Classes(torch.nn.Module):
    def __init__(self, count):
        super().__init__()
        self.config = ClassifierConfig(num_classes=count)


@pytest.mark.parametrize(("count", "dlr", "targeted"), [(2, False, False), (3, True, False), (4, True, True)])
def test_dlr_is_left_out_where_there_are_too_few_classes_and_there_are_no_more_targets_than_other_classes(count, dlr, targeted):
    row, known = Defence("d", Classes(count), ToyPurifier(guided(1.0))), known_attacks(CONFIG)
    assert (fitted(known["APGD, DLR"], row) is not None, fitted(known["APGD-T"], row) is not None) == (dlr, targeted)
    assert fitted(known["exact, targeted"], row).targets == min(3, count - 1)


def test_autoattack_is_refused_before_anything_runs_where_it_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "autoattack", None)
    with pytest.raises(NotInstalledError, match=r"^AutoAttack is not installed: pip install git\+https://github.com/fra31/auto-attack$"):
        fitted(known_attacks(CONFIG)["autoattack-rand"], defence())


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
