"""The noise: Random123's known answers, independence of the batch, and seeds of other streams."""

from __future__ import annotations

import math

import pytest
import torch

from purify_engine.reference.philox import (
    derive_seed,
    derived_keys,
    derived_number,
    philox,
    philox_block,
    philox_normal,
)
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


def philox_in_python(counter, key):
    """Philox 4x32-10 on Python's integers, which know no words and no signs."""
    c, k = list(counter), list(key)
    for _ in range(10):
        first, second = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [second >> 32 ^ c[1] ^ k[0], second % 2**32, first >> 32 ^ c[3] ^ k[1], first % 2**32]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return tuple(c)


SEED = 0x299F31D0_A4093822


@pytest.mark.parametrize(("counter", "key", "words"), RANDOM123)
def test_the_cipher_in_python_is_the_cipher(counter, key, words):
    assert philox_in_python(counter, key) == words


@pytest.mark.parametrize("stream", [0, 1, 2**32, 2**32 + 1, 2**33, 2**33 + 1, 2**33 + 7])
def test_derived_seeds_are_known_words(stream):
    """Of a counter that noise cannot reach: block and step at their ends, and all 64 bits of the stream."""
    counter = (0xFFFFFFFF, 0xFFFFFFFE, stream % 2**32, stream >> 32)
    low, high, *_ = philox_in_python(counter, (SEED % 2**32, SEED >> 32))
    assert derive_seed(torch.tensor(SEED), stream).item() == (high % 2**31) << 32 | low


def test_streams_beyond_32_bits_have_seeds_of_their_own():
    """The guide's noise, independent draws and cycles begin at 1, 2**32 and 2**33: no two of them may share a seed."""
    streams = [first + count for first in (0, 2**32, 2**33, 2**34) for count in range(50)]
    assert len({derive_seed(torch.tensor(3), stream).item() for stream in streams}) == len(streams)


@pytest.mark.parametrize("numel", [1, 2, 3, 4, 5, 30])
def test_normals_are_box_mullers_of_the_words_in_pairs(numel):
    ids, step = torch.tensor([3, 2**40 + 5]), 9
    found = philox_normal(torch.tensor(SEED), ids, torch.tensor(step), numel, dtype=torch.float64)
    assert found.shape == (2, numel) and found.is_contiguous()
    for identity, row in zip(ids.tolist(), found.tolist(), strict=True):
        for element, normal in enumerate(row):
            counter = (element // 4, step, identity % 2**32, identity >> 32)
            words = philox_in_python(counter, (SEED % 2**32, SEED >> 32))
            first, second = words[element % 4 // 2 * 2 : element % 4 // 2 * 2 + 2]
            r, theta = math.sqrt(-2 * math.log(first / 2**32 + 2**-33)), 2 * math.pi * second / 2**32
            assert normal == pytest.approx(r * (math.sin(theta) if element % 2 else math.cos(theta)), abs=1e-12)


def test_normals_are_standard_and_uncorrelated():
    normals = philox_normal(torch.tensor(1), torch.arange(8), torch.tensor(0), 2**14, dtype=torch.float64)
    # 131,072 draws: five standard errors of the mean, the variance and a correlation
    assert abs(normals.mean()) < 5 / 2**8.5
    assert abs(normals.var() - 1) < 5 * 2**0.5 / 2**8.5
    assert abs((normals[:, :-1] * normals[:, 1:]).mean()) < 5 / 2**8.5


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32 + 5, 2**63 - 1])
@pytest.mark.parametrize("stream", [0, 1, 2**32, 2**32 + 7, 2**33 + 1])
def test_the_host_derives_the_seed_that_the_device_derives(seed, stream):
    assert derived_number(seed, stream) == derive_seed(torch.tensor(seed), stream).item()


STREAMS = torch.tensor([0, 1, 1, 2**32, 2**32 + 7, 2**33 + 1, 2**48 + (3 << 24), 2**62])


@pytest.mark.parametrize("seed", [0, SEED, 2**63 - 1])
def test_many_streams_give_the_seeds_that_each_gives(seed):
    keys = derived_keys(seed, STREAMS)
    assert keys.dtype == torch.int64
    assert keys.tolist() == [derived_number(seed, stream) for stream in STREAMS.tolist()]
    assert torch.equal(derived_keys(seed, STREAMS.view(2, 4)), keys.view(2, 4)) and derived_keys(seed, STREAMS[:0]).shape == (0,)


def test_many_keys_give_the_seeds_that_each_gives():
    keys = derived_keys(SEED, STREAMS)
    assert derive_seed(keys, 2**33 + 5).tolist() == [int(derive_seed(key, 2**33 + 5)) for key in keys]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_image_gets_by_a_key_of_its_own_what_it_gets_alone(dtype):
    keys, ids, step = derived_keys(SEED, STREAMS), torch.tensor([3, 3, 4, 2**40, 3, 0, -1, 3]), torch.tensor(2)
    together = philox_normal(keys, ids, step, 193, dtype=dtype)
    alone = [philox_normal(key, ids[i : i + 1], step, 193, dtype=dtype) for i, key in enumerate(keys)]
    assert torch.equal(together, torch.cat(alone))
