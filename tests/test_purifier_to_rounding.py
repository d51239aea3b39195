"""Beside the tests of test_purifier.py that ask for equal bits: the same to rounding, so that a red bit hides no fault."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from purify_engine.purifier import GuidedPurifier
from tests.test_purifier import images
from tests.test_purifier_state import KINDS, apart, assert_close, made


@KINDS
def test_every_call_mode_gives_the_same_images_to_rounding(kind):
    model, x = made(kind=kind), images()
    with torch.no_grad():
        expected = model(x)
    with torch.inference_mode():
        inferred = model(x)
    outs = [model(x), inferred.clone(), model(x.clone().requires_grad_()).detach(), made("loop", kind=kind)(x)]
    seen = []
    outs.append(model(x, callback_on_step_end=lambda *step: seen.append(step)))
    for out in outs:
        assert_close(out, expected)
    assert len(seen) == 3


@pytest.mark.parametrize("kind", ["adversarial", "pixel"])
def test_scale_zero_is_unguided_to_rounding(kind):
    assert_close(made(scale=0.0, kind=kind)(images()), made(kind="none")(images()))
    assert apart(made(scale=30.0, kind=kind)(images()), made(kind="none")(images()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_copies_pickles_and_saved_purifiers_give_the_same_images_to_rounding(tmp_path, dtype):
    model, x = made().to(dtype), images().to(dtype)
    expected = model(x)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_close(other(x), expected)
    model.save_pretrained(tmp_path / "mine")
    loaded = GuidedPurifier.from_pretrained(tmp_path / "mine").to(dtype)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert_close(loaded(x), expected)
