"""purify::philox and purify::philox_normal: the same words in C++ and PyTorch, and normals that are normal."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from purify_engine import ops
from purify_engine.ops import _extension
from purify_engine.reference import philox
from purify_engine.testing.cases import RANDOM123, cases
from tests.ops.against_reference import assert_matches_reference


@pytest.mark.parametrize(("counter", "key", "words"), RANDOM123)
def test_known_answers_of_random123(counter, key, words, each_instruction_set):
    assert tuple(_extension.extension.philox_block(counter, key)) == words


@pytest.mark.parametrize("case", cases("philox"), ids=str)
def test_words_are_those_of_the_reference_bit_for_bit(case, each_instruction_set):
    with ops.backend("cpp"):
        got = ops.philox(*case.arguments())
    assert torch.equal(got, philox.philox(*case.arguments()))


@pytest.mark.parametrize("case", cases("philox_normal"), ids=str)
def test_normals_match_the_reference(case, each_instruction_set):
    assert_matches_reference(case, ops.philox_normal, philox.philox_normal)


@pytest.mark.parametrize("engine", ["cpp", "reference"])
def test_ten_million_draws_are_standard_normals(engine):
    key, ids, step = torch.tensor(20), torch.arange(40), torch.tensor(3)
    with ops.backend(engine):
        draws = ops.philox_normal(key, ids, step, 250_000, dtype=torch.float32).flatten().double()
    # Five standard errors of the mean, of the variance, and of the correlation of neighbours.
    error = 5 / draws.numel() ** 0.5
    assert abs(draws.mean()) < error
    assert abs(draws.var() - 1) < error * 2**0.5
    assert abs((draws[1:] * draws[:-1]).mean()) < error
    assert stats.kstest(draws.numpy(), "norm").pvalue > 1e-3
    assert draws.abs().max() < 6.77  # sqrt(-2 log 2**-33), the largest that 32 bits can give


def test_registration_is_sound():
    key, ids, step = torch.tensor(7), torch.arange(3), torch.tensor(1)
    # without the trace of a gradient: there is none
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.purify.philox.default, (key, ids, step, 10), test_utils=checks)
    normal, keywords = torch.ops.purify.philox_normal.default, {"dtype": torch.float64}
    torch.library.opcheck(normal, (key, ids, step, 10), keywords, test_utils=checks)
