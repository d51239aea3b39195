"""Whose noise a call draws: of seeds, draws, ids and cycles, each known by the key it must have."""

from __future__ import annotations

import pytest
import torch

from purify_engine.reference.philox import derive_seed
from tests.test_purifier import images, purifier
from tests.test_purifier_state import EXECUTIONS, apart, assert_close, made


def test_each_draw_has_the_seed_of_its_stream():
    """Draw k of a purifier is the fixed noise of the seed derived at 2**32 + k."""
    model, x = made(), images()
    for draw in (0, 1, 77, 2**32 - 1):
        other = made().reseed(int(derive_seed(torch.tensor(0), 2**32 + draw)))
        assert_close(model(x, draw=draw), other(x))
    with pytest.raises(ValueError, match=r"draw must be in \[0, 2\*\*32\), got 4294967296"):
        model(x, draw=2**32)


def test_fresh_noise_of_a_seed_takes_one_draw_after_another_and_tells_images_apart_by_their_place():
    model, x, ids = purifier().reseed(0), images(), torch.arange(5)
    for draw in range(3):
        assert_close(model(x), made()(x, ids=ids, draw=draw))
    model(x, ids=ids), model(x, draw=9)  # which name their noise, and leave the count alone
    assert_close(model(x), made()(x, ids=ids, draw=3))
    assert_close(model.reseed(0)(x), made()(x, ids=ids, draw=0))


def test_a_seed_is_the_same_in_the_configuration_and_by_reseeding():
    x, big = images(), 2**62 + 5
    for seed in (1, big):
        expected = made("loop", seed=seed)(x)
        model = made().reseed(seed)
        assert model.config.seed == seed and int(model.seed) == seed
        assert_close(model(x), expected)
        assert apart(expected, made()(x))


def test_named_noise_without_ids_is_that_of_id_zero_and_ids_may_be_of_any_integer_dtype():
    model, x, zeros = made(), images(), torch.zeros(5, dtype=torch.int64)
    assert_close(model(x), model(x, ids=zeros))
    assert_close(model(x, ids=zeros.int()), model(x))
    assert_close(model(x, ids=[0, 1, 2, 3, 4]), model(x, ids=torch.arange(5)))
    assert apart(model(x, ids=zeros + 1), model(x))
    assert_close(model(x, ids=zeros, draw=4), model(x, draw=4))
    assert apart(model(x, draw=4), model(x))


def test_ids_and_draws_choose_different_noise_for_an_image():
    model = made(kind="none")
    x = images(1).expand(6, -1, -1, -1)
    ids = torch.tensor([0, 1, 2**32, 2**33, 2**33 + 1, 2**62])
    outs = [model(x, ids=ids), model(x, ids=ids, draw=0), model(x, ids=ids, draw=1)]
    assert torch.unique(torch.cat(outs).flatten(1), dim=0).shape[0] == 18


@EXECUTIONS
def test_two_cycles_are_one_after_another_each_with_its_own_key(execution):
    """The second cycle is the purifier of the seed derived at 2**33 + 1; in between nothing is cut off, as nothing is here."""
    x = (0.4 + 0.2 * images()).double()
    once, twice, thrice = (made(execution, t_star=10, num_steps=2, cycles=cycles).double() for cycles in (1, 2, 3))
    between = once(x)
    assert between.min() > 0.01 and between.max() < 0.99
    reseeded = [once.configured(seed=int(derive_seed(torch.tensor(0), 2**33 + cycle))) for cycle in (1, 2)]
    expected = reseeded[0](between)
    assert_close(twice(x), expected, 1e-12)
    assert apart(once(between), expected)  # by the noise alone
    assert expected.min() > 0.01 and expected.max() < 0.99
    assert_close(thrice(x), reseeded[1](expected), 1e-12)
    drawn = twice.configured(seed=int(derive_seed(torch.tensor(0), 2**32 + 5)))  # a draw's cycles are those of its own seed
    assert_close(twice(x, draw=5), drawn(x), 1e-12)
    (grad,) = torch.autograd.grad(twice(leaf := x.clone().requires_grad_()).square().sum(), leaf)
    (by_hand,) = torch.autograd.grad(reseeded[0](once(leaf)).square().sum(), leaf)
    assert_close(grad, by_hand, 1e-10)


def test_what_leaves_the_range_between_cycles_is_not_cut_off():
    """Images that end in white: [0, 1] is asked for at the end, and a cut in between would lose what the next cycle reads."""
    model = made(scale=0.0, cycles=2)
    x = torch.ones(2, 1, 8, 8)
    cut = made(scale=0.0).configured(seed=int(derive_seed(torch.tensor(0), 2**33 + 1)))(made(scale=0.0)(x))
    assert apart(model(x), cut)


def test_noise_follows_the_id_through_batches_to_rounding():
    model, x, ids = made(), images(7), torch.tensor([3, 2**40, 0, 8, 2**62, 1, 5])
    whole = model(x, ids=ids)
    for size in (1, 3):
        found = [model(part, ids=part_ids) for part, part_ids in zip(x.split(size), ids.split(size), strict=True)]
        assert_close(torch.cat(found), whole)
