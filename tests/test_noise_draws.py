"""`draw=` for each image, and `num_draws=`: every image is purified as in a call of its own with its id and its draw."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from purify_engine.images import NUM_DRAWS
from purify_engine.noise import Streams, noise_of
from tests.test_purifier import images, purifier
from tests.test_purifier_state import apart, assert_close, gradient, made

DRAWS = torch.tensor([3, 2**32 - 1, 3])
IDS = torch.tensor([7, 7, 2**40])


def of_each(x, ids, draws):
    """(image [1, C, H, W], what names its noise) for every image."""
    return [(x[i : i + 1], {"ids": ids[i : i + 1], "draw": int(draws[i])}) for i in range(len(x))]


@pytest.mark.parametrize(("execution", "kind"), [("loop", "adversarial"), ("graph", "pixel"), ("graph", "none")])
def test_images_of_a_batch_may_be_of_different_draws(execution, kind):
    model, x = made(execution, kind=kind), images(3)
    expected = torch.cat([model(image, **names) for image, names in of_each(x, IDS, DRAWS)])
    for _ in range(3):  # a recording runs, is recorded, and replayed
        found = model(x, ids=IDS, draw=DRAWS)
        assert_close(found, expected)
    order = torch.tensor([2, 0])
    assert_close(model(x[order], ids=IDS[order], draw=DRAWS[order]), expected[order])
    assert_close(model(x, ids=IDS, draw=3)[[0, 2]], expected[[0, 2]])  # one draw of all beside one for each
    assert apart(model(x, ids=IDS, draw=DRAWS.flip(0) - 1), expected)


def test_the_gradient_of_an_image_is_that_of_its_draw():
    model, x = made(kind="pixel"), images(3).double()
    model.double()
    weights = torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view_as(x)
    found = gradient(model, x, ids=IDS, draw=DRAWS)
    for i, (image, names) in enumerate(of_each(x, IDS, DRAWS)):
        image = image.clone().requires_grad_()
        (grad,) = torch.autograd.grad((weights[i] * model(image, **names)).sum(), image)
        assert_close(found[i : i + 1], grad, 1e-10)


def test_many_draws_of_every_image_are_as_many_calls():
    model, x = made(kind="none"), images(2)
    found = model(x, ids=IDS[:2], draw=4, num_draws=3)
    assert found.shape == (3, *x.shape)
    assert_close(found, torch.stack([model(x, ids=IDS[:2], draw=4 + k) for k in range(3)]))
    each = model(x, draw=torch.tensor([1, 9]), num_draws=2)
    assert_close(each, torch.stack([model(x, draw=torch.tensor([1 + k, 9 + k])) for k in range(2)]))
    assert_close(model(x, num_draws=1)[0], model(x, draw=0))  # named by the configuration: from the first draw on
    assert_close(model(x, draw=4, num_draws=np.int64(1))[0], model(x, draw=4))
    assert_close(gradient(lambda x: model(x, draw=4, num_draws=3)[1], x), gradient(model, x, draw=5))


def test_many_fresh_draws_are_the_next_ones():
    model, other = (purifier(kind="none").reseed(5) for _ in range(2))
    x = images(2)
    assert_close(model(x, num_draws=3), torch.stack([other(x) for _ in range(3)]))
    assert_close(model(x), other(x))
    with_generator = model(x, num_draws=2, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(1)
    assert_close(with_generator, torch.stack([other(x, generator=generator) for _ in range(2)]))


def test_cycles_and_tiles_keep_the_draws_of_images_apart():
    model = made(kind="none", cycles=2, sizes="tile", tile_stride=4)
    x = torch.cat([images(3), images(3, seed=2)[..., :4]], dim=3)
    expected = torch.cat([model(image, **names) for image, names in of_each(x, IDS, DRAWS)])
    assert_close(model(x, ids=IDS, draw=DRAWS), expected)


def test_the_keys_of_draws_are_those_of_each_draw():
    streams, x = Streams(11, "attack"), images(3)
    noise = noise_of(streams, "fresh", x, draw=DRAWS, num_draws=1)
    assert noise.key.tolist() == [streams.drawn(int(draw)) for draw in DRAWS] and noise.ids.tolist() == [0, 0, 0]
    assert noise_of(streams, "fixed", x, draw=4).key.shape == ()
    assert noise_of(streams, "fixed", x[:1], draw=[4]).key.shape == ()  # one key, as of a number: the same recording
    assert noise_of(streams, "fixed", x[:0], draw=torch.arange(0), num_draws=2).key.shape == (0,)


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ({"draw": torch.tensor([1, 2])}, r"draw must be .*\[3\]"),
        ({"draw": torch.tensor([1, 2, NUM_DRAWS])}, r"draw must be "),
        ({"draw": torch.tensor([1, 2, NUM_DRAWS - 1]), "num_draws": 2}, r"draw must be in \[0, 2\*\*32\)"),
        ({"draw": NUM_DRAWS - 1, "num_draws": 2}, r"draw must be in \[0, 2\*\*32\)"),
        ({"num_draws": 0}, "num_draws must be a whole number, at least 1, got 0"),
        ({"num_draws": 1.5}, "num_draws must be a whole number, at least 1, got 1.5"),
        ({"num_draws": True}, "num_draws must be a whole number, at least 1, got True"),
    ],
    ids=str,
)
def test_draws_that_cannot_be_are_refused(names, says):
    with pytest.raises(ValueError, match=says):
        made()(images(3), **names)
