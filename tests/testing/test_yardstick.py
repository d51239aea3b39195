"""The yardstick measures: what is wrong is told apart from what is as wrong as honest PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from purify_engine.reference import layers, philox, process
from purify_engine.testing import extended
from purify_engine.testing.cases import cases
from purify_engine.testing.yardstick import assert_within_yardstick

EPS = torch.finfo(torch.float32).eps
TRUTH = torch.tensor([1.0, -0.5], dtype=torch.float64)
HONEST = torch.tensor([1.0, -0.5 + EPS])  # one rounding wrong, so that three are allowed


@pytest.mark.parametrize("error", [0.0, EPS, 3 * EPS])
def test_twice_as_wrong_as_honest_and_a_rounding_is_allowed(error):
    assert_within_yardstick(torch.tensor([1.0 + error, -0.5]), HONEST, TRUTH)


@pytest.mark.parametrize(
    ("got", "says"),
    [
        (torch.tensor([1.0 + 4 * EPS, -0.5]), "beyond 3.58e-07"),
        (torch.tensor([1.0, torch.nan]), "1 of 2 elements are NaN"),
        (torch.tensor([[1.0, -0.5]]), r"shape \(1, 2\), expected \(2,\)"),
    ],
)
def test_more_is_a_failure_that_says_what(got, says):
    with pytest.raises(AssertionError, match=says):
        assert_within_yardstick(got, HONEST, TRUTH)


@pytest.mark.parametrize(
    "reference",
    [
        philox.philox_normal,
        process.q_sample,
        process.guided_step,
        layers.group_norm_silu,
        layers.group_norm_silu_backward,
    ],
    ids=lambda reference: reference.__name__,
)
def test_the_specification_in_float64_agrees_with_long_double(reference):
    """Where all 200 cases agree to a few roundings, neither of the two can be wrong by itself."""
    for case in (case for case in cases(reference.__name__) if case.dtype == torch.float64):
        if case.keywords.get("net_dtype") == torch.bfloat16:
            continue  # rounded to bfloat16 on purpose
        results = (f(*case.arguments(), **case.keywords) for f in (reference, getattr(extended, reference.__name__)))
        for value, true in zip(*(one if isinstance(one, tuple) else (one,) for one in results), strict=True):
            assert tuple(value.shape) == true.shape
            if value.numel():
                roundings = 1e-13 if value.dtype == torch.float64 else EPS
                assert np.abs(value.double().numpy() - true).max() <= roundings * max(1, np.abs(true).max()), case
