"""The choice of how to convolve: what is accurate, and the nearest measured problem."""

from __future__ import annotations

import pytest

from purify_engine.ops.conv3x3 import tiling as tiling_module
from purify_engine.ops.conv3x3.table import WINNERS
from purify_engine.ops.conv3x3.tiling import Tiling, admitted, tiling


@pytest.mark.parametrize("instruction_set", WINNERS)
def test_a_measured_problem_gets_its_winner(instruction_set):
    for (images, side, channels, out_channels), winner in WINNERS[instruction_set].items():
        got = tiling(images, side, side, channels, out_channels, instruction_set)
        assert got == (winner and Tiling(*winner))
        assert got is None or got.results in admitted(images, side, side, channels, out_channels)


def test_another_problem_gets_that_of_the_nearest(monkeypatch):
    near, far = (4, 48, True), (2, 24, False)
    winners = {(8, 16, 256, 256): near, (1, 8, 256, 256): far, (8, 64, 16, 16): None}
    monkeypatch.setattr(tiling_module, "WINNERS", {"avx2": winners})
    choose = tiling.__wrapped__
    assert choose(6, 18, 20, 200, 300, "avx2") == Tiling(*near)
    assert choose(1, 9, 9, 300, 200, "avx512") == Tiling(*far), "an instruction set that was not measured"
    assert choose(8, 64, 64, 16, 17, "avx2") is None


def test_what_is_not_accurate_is_never_chosen(monkeypatch):
    monkeypatch.setattr(tiling_module, "WINNERS", {"avx2": {(1, 8, 64, 64): (4, 48, True)}})
    choose = tiling.__wrapped__
    assert admitted(1, 8, 8, 64, 64) == (2,)
    assert choose(1, 8, 8, 64, 64, "avx2") == Tiling(2, 48, True)
    assert choose(1, 3, 3, 64, 64, "avx2") is None
    assert choose(1, 8, 8, 8, 64, "avx2") is None
