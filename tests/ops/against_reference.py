"""The C++ room beside the reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from purify_engine import ops
from purify_engine.testing.agreement import Judge, assert_agrees
from purify_engine.testing.cases import Case
from purify_engine.testing.yardstick import assert_within_yardstick


def assert_matches_reference(
    case: Case, op: Callable[..., Any], reference: Callable[..., Any], judge: Judge = assert_within_yardstick
) -> None:
    """The C++ room's results, by `assert_agrees`."""
    with ops.backend("cpp"):
        got = op(*case.arguments(), **case.keywords)
    assert_agrees(case, got, reference, judge)
