"""The switches of the faster ways on GPUs: who takes them, that one thread alone flips them, and proofs of equal bits."""

from __future__ import annotations

import threading

import pytest
import torch

from purify_engine.ops import switches


def test_a_cpu_takes_none_of_them() -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        assert not any(switches.runs(name, torch.zeros(1, dtype=dtype)) for name in switches.SWITCHES)


def test_anywhere_takes_those_that_are_on() -> None:
    x = torch.zeros(1, dtype=torch.float64)
    with switches.anywhere():
        taken = {name for name in switches.SWITCHES if switches.runs(name, x)}
        with switches.switched(linear_1x1=False, split_k=True):
            assert not switches.runs("linear_1x1", x) and switches.runs("split_k", x)
    assert taken == {name for name, switch in switches.SWITCHES.items() if switch.default}
    assert not switches.runs("linear_1x1", x)


def test_a_switch_is_flipped_in_its_own_thread_and_back_again() -> None:
    elsewhere: list[bool] = []
    before = switches.state()
    with pytest.raises(KeyError, match="inside"), switches.switched(linear_1x1=False):
        thread = threading.Thread(target=lambda: elsewhere.append(switches.is_on("linear_1x1")))
        thread.start()
        thread.join()
        assert not switches.is_on("linear_1x1") and switches.state() != before
        raise KeyError("inside")
    assert elsewhere == [True] and switches.state() == before


def test_a_switch_that_is_unknown_is_refused() -> None:
    with pytest.raises(ValueError, match="switch must be one of linear_1x1.*got 'linear'"), switches.switched(linear=True):
        pass


def test_every_switch_says_its_contract() -> None:
    for switch in switches.SWITCHES.values():
        assert switch.contract in ("exact", "fast") and switch.says and switch.used


def test_what_equals_its_parts_is_taken_from_the_second_call_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(switches, "_proofs", {})
    x, calls = torch.tensor([1.0, float("nan")]), list[str]()

    def fused() -> torch.Tensor:
        calls.append("fused")
        return x.clone()

    def parts() -> torch.Tensor:
        calls.append("parts")
        return x.clone()

    for _ in range(2):
        switches.proven("fused_sum", ((2,),), fused, parts)
    assert calls == ["parts", "fused", "fused"]
    switches.proven("fused_sum", ((3,),), fused, parts)
    assert calls[3:] == ["parts", "fused"]


def test_what_differs_by_one_bit_is_never_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(switches, "_proofs", {})
    expected = torch.ones(3)
    wrong = torch.tensor([1.0, 1.0, 1.0 + 2**-23])
    with pytest.warns(RuntimeWarning, match="fused_sum is not equal to its parts"):
        first = switches.proven("fused_sum", (3,), lambda: wrong, lambda: expected)
    again = switches.proven("fused_sum", (3,), lambda: wrong, lambda: expected)
    assert first.equal(expected) and again.equal(expected)
