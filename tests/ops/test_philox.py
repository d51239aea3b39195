"""purify::philox and purify::philox_normal: the same words in C++ and PyTorch, and normals that are normal."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from purify_engine import ops
from purify_engine.ops import cpp
from purify_engine.reference import philox
from purify_engine.testing.cases import cases
from tests.ops.against_reference import assert_matches_reference

# Random123's kat_vectors, philox4x32 with 10 rounds: the four counter words, the two key words, the four results.
KNOWN = (
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
)


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_known_answers_of_random123(counter, key, words, room):
    assert tuple(cpp.room.philox_block(counter, key)) == words


@pytest.mark.parametrize("case", cases("philox"), ids=str)
def test_words_are_those_of_the_reference_bit_for_bit(case, room):
    with ops.backend("cpp"):
        got = ops.philox(*case.arguments())
    assert torch.equal(got, philox.philox(*case.arguments()))


@pytest.mark.parametrize("case", cases("philox_normal"), ids=str)
def test_normals_match_the_reference(case, room):
    assert_matches_reference(case, ops.philox_normal, philox.philox_normal)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_million_draws_are_standard_normals(dtype, room):
    draws = ops.philox_normal(torch.tensor(20), torch.arange(4), torch.tensor(3), 250_000, dtype=dtype).flatten().double()
    # Five standard errors of the mean, of the variance, and of the correlation of neighbours.
    assert abs(draws.mean()) < 5e-3
    assert abs(draws.var() - 1) < 5e-3 * 2**0.5
    assert abs((draws[1:] * draws[:-1]).mean()) < 5e-3
    assert stats.kstest(draws.numpy(), "norm").pvalue > 1e-3
    assert draws.abs().max() < 6.77  # sqrt(-2 log 2**-33), the largest that 32 bits can give


def test_registration_is_sound():
    key, ids, step = torch.tensor(7), torch.arange(3), torch.tensor(1)
    # without the trace of a gradient: there is none
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.purify.philox.default, (key, ids, step, 10), test_utils=checks)
    normal, keywords = torch.ops.purify.philox_normal.default, {"dtype": torch.float64}
    torch.library.opcheck(normal, (key, ids, step, 10), keywords, test_utils=checks)
