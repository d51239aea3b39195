"""The noise: Random123's known answers, independence of the batch, and seeds of other streams."""

from __future__ import annotations

import pytest
import torch

from purify_engine.reference.philox import derive_seed, philox, philox_block, philox_normal
from purify_engine.testing.cases import RANDOM123


@pytest.mark.parametrize(("counter", "key", "words"), RANDOM123)
def test_known_answers_of_random123(counter, key, words):
    drawn = philox_block(tuple(map(torch.tensor, counter)), tuple(map(torch.tensor, key)))
    assert tuple(word.item() for word in drawn) == words


def test_the_counter_is_block_step_and_both_halves_of_the_id():
    key, identity, step = (0xA4093822, 0x299F31D0), 0x03707344_13198A2E, 0x85A308D3
    seed = torch.tensor(key[1] << 32 | key[0])
    block = 5
    counter = map(torch.tensor, (block, step, 0x13198A2E, 0x03707344))
    expected = torch.stack(philox_block(tuple(counter), tuple(map(torch.tensor, key))))
    words = philox(seed, torch.tensor([identity]), torch.tensor(step), 30)
    assert torch.equal(words[0, 4 * block : 4 * block + 4], expected)


def test_an_image_gets_the_same_noise_in_any_batch():
    key, step, ids = torch.tensor(-7), torch.tensor(3), torch.randperm(37, generator=torch.Generator().manual_seed(0))
    whole = philox_normal(key, ids, step, 193, dtype=torch.float32)
    for size in (1, 5, 37):
        parts = [philox_normal(key, part, step, 193, dtype=torch.float32) for part in ids.split(size)]
        assert torch.equal(torch.cat(parts), whole)


def test_a_longer_draw_begins_with_the_shorter_one():
    key, step, ids = torch.tensor(11), torch.tensor(0), torch.arange(3)
    assert torch.equal(philox(key, ids, step, 101)[:, :7], philox(key, ids, step, 7))


def test_normals_of_both_dtypes_are_the_same_draw():
    key, step, ids = torch.tensor(11), torch.tensor(0), torch.arange(3)
    single, double = (philox_normal(key, ids, step, 999, dtype=dtype) for dtype in (torch.float32, torch.float64))
    # u = 1 - 2**-25 is not a float32: near r = 0 the rounding of u costs up to sqrt(2**-24) of r
    assert (single - double).abs().max() < 2.5e-4
    assert (single - double).abs().median() < 1e-7


def test_derived_seeds_differ_from_one_another_and_from_the_noise():
    key = torch.tensor(5)
    seeds = [derive_seed(key, stream).item() for stream in range(1000)]
    assert len(set(seeds)) == 1000
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(key, 1).dtype == torch.int64
    assert derive_seed(key, 1).shape == ()
    assert derive_seed(torch.tensor(6), 1) != seeds[1]
