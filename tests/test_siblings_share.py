"""Siblings share what is costly: recordings, plans and packed weights; and nothing that would mix up their answers."""

from __future__ import annotations

import copy
import dataclasses
import gc

import pytest

from purify_engine.engine.purification import MOST_GUIDES, MOST_PLANS
from tests.test_purifier import images
from tests.test_purifier_state import apart, assert_close, gradient, made

CHANGES = [{"t_star": 60}, {"sampler": "ddim"}, {"seed": 7}, {"gradient": "bpda"}, {"clamp": False}, {"noise": "fresh"}]


def graphs_of(model):
    return model._purification().guided.replay._graphs


@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_a_sibling_records_nothing_that_was_recorded(changes):
    model, x = made(), images(2)
    model(x, draw=1)
    recorded = dict(graphs_of(model))
    sibling = model.configured(**changes)
    sibling(x, draw=1)
    assert graphs_of(sibling) is graphs_of(model) and dict(graphs_of(model)) == recorded


def test_siblings_of_another_strength_share_their_guide_and_its_graphs():

    model, x = made(), images(2)
    strong = model.configured(guidance=dataclasses.replace(model.config.guidance, scale=30.0))
    assert strong._purification().guided.guide is model._purification().guided.guide
    assert apart(strong(x), model(x))
    fresh = made("loop").configured(guidance=strong.config.guidance)
    assert_close(strong(x), fresh(x))


def test_siblings_in_turn_are_as_purifiers_of_their_own():
    model, x = made(), images(2)
    siblings = [model, *(model.configured(**changes) for changes in CHANGES if "noise" not in changes)]
    fresh = [made("loop").configured(**changes) for changes in ({}, *(c for c in CHANGES if "noise" not in c))]
    for _ in range(2):
        for one, other in zip(siblings, fresh, strict=True):
            assert_close(one(x), other(x))
            assert_close(gradient(one, x), gradient(other, x), 1e-4)


def test_siblings_that_differ_in_their_noise_or_gradient_share_their_plans():
    model = made()
    for changes in ({"seed": 3}, {"gradient": "bpda"}, {"noise": "torch"}, {"clamp": False}, {"sizes": "resize"}):
        assert model.configured(**changes).plan() is model.plan()
    assert model.configured(t_star=60).plan() is not model.plan()


def test_what_is_kept_is_bounded_and_copies_start_empty():
    model = made()
    for seed in range(MOST_PLANS + 3):
        model.configured(seed=seed).plan()
    for weight in range(MOST_GUIDES + 3):
        guidance = dataclasses.replace(model.config.guidance, label_weight=2.0 + weight)
        assert model.configured(guidance=guidance)._purification().guided is not model._purification().guided
    gc.collect()
    assert len(model._shared._guides) == MOST_GUIDES and len(model._shared._plans_of_configs) == MOST_PLANS
    assert not copy.deepcopy(model)._shared._guides


def test_what_a_living_sibling_uses_is_kept():
    model = made()
    guidances = [dataclasses.replace(model.config.guidance, label_weight=2.0 + weight) for weight in range(MOST_GUIDES + 3)]
    siblings = [model.configured(guidance=guidance) for guidance in guidances]
    used = [sibling._purification().guided for sibling in siblings]
    assert all(sibling._purification().guided is guided for sibling, guided in zip(siblings, used, strict=True))
    del siblings, used
    gc.collect()
    assert len(model._shared._guides) == MOST_GUIDES


def test_a_sibling_of_a_moved_purifier_is_where_the_networks_are():
    model = made()
    sibling = model.configured(t_star=50)
    model.to("meta")
    assert sibling.device.type == "meta" and sibling(images(2).to("meta")).is_meta
    assert sibling.memory_report()["step_per_image"] > 0
