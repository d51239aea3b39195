"""Who shares noise with whom (docs/noise.md): each way of making another purifier, and each way of naming noise."""

from __future__ import annotations

import copy
import multiprocessing
import pickle

import pytest
import torch

from purify_engine.noise import Streams
from tests.test_purifier import images, purifier
from tests.test_purifier_state import apart, assert_close, made

OTHERS = {
    "a sibling": lambda model: model.configured(),
    "a deepcopy": copy.deepcopy,
    "a twin": lambda model: model.twin("attack"),
    "a replica of DataParallel": lambda model: replicated(model),
}
EVERY_OTHER = pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)


def replicated(model):
    """What torch.nn.parallel.replicate makes, its networks' weights being where they are already."""
    replica = model._replicate_for_data_parallel()
    replica.denoiser, replica.guide, replica.seed = model.denoiser, model.guide, model.seed
    return replica


# Fresh noise


@EVERY_OTHER
@pytest.mark.parametrize("seed", [None, 5])
def test_fresh_noise_is_independent_between(other, seed):
    model = purifier().reseed(seed)
    another = other(model)
    outs = [model(images(2)), another(images(2)), model(images(2)), another(images(2)), other(model)(images(2))]
    assert all(apart(one, two) for place, one in enumerate(outs) for two in outs[:place])


@EVERY_OTHER
def test_fresh_noise_of_a_seed_is_reproduced_by(other):
    def drawn():
        model = purifier().reseed(5)
        return [model(images(2)), other(model)(images(2)), other(model)(images(2)), model(images(2))]

    for one, two in zip(drawn(), drawn(), strict=True):
        assert_close(one, two)


@pytest.mark.parametrize("seed", [None, 5])
def test_siblings_of_replicas_draw_apart(seed):
    model = purifier().reseed(seed)
    others = [replicated(model), replicated(model), model]
    drawn = [sibling.streams.fresh() for other in others for sibling in (other.configured(), other.twin("attack"))]
    assert len(set(drawn)) == 6


def test_fresh_noise_without_a_seed_is_never_repeated():
    pickled = pickle.dumps(purifier())
    outs = [model(images(2)) for model in (purifier(), purifier(), pickle.loads(pickled), pickle.loads(pickled))]
    assert all(apart(one, two) for place, one in enumerate(outs) for two in outs[:place])


def test_a_pickle_begins_at_the_first_draw_of_its_seed():
    model = purifier().reseed(5)
    first = model(images(2))
    assert_close(pickle.loads(pickle.dumps(model))(images(2)), first)


def test_a_sibling_that_is_given_a_seed_begins_at_its_first_draw():
    model = purifier()
    assert_close(model.configured(seed=5)(images(2)), model.configured(seed=5)(images(2)))
    assert_close(model.configured(seed=5)(images(2)), purifier().reseed(5)(images(2)))


def in_a_forked_process(work):
    context = multiprocessing.get_context("fork")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=lambda: sending.send(work()))
    process.start()
    found = receiving.recv()
    process.join()
    return found


def test_a_forked_process_draws_for_itself_unless_a_seed_is_given():
    model, seeded = Streams(None), Streams(5)
    model.fresh()
    assert in_a_forked_process(model.fresh) != model.fresh()
    assert in_a_forked_process(seeded.fresh) == seeded.fresh()


@pytest.mark.parametrize("seed", [None, 5])
def test_ranks_draw_apart(monkeypatch, seed):
    seeds = []
    for rank in ("0", "1", "2"):
        monkeypatch.setenv("RANK", rank)
        streams = Streams(seed)
        seeds += [streams.fresh(), streams.fresh()]
    assert len(set(seeds)) == 6
    monkeypatch.setenv("RANK", "1")
    assert seed is None or Streams(seed).fresh() == seeds[2]


# Named noise


@EVERY_OTHER
def test_named_noise_is_the_same_in_everything_but_a_twin(other):
    model = made()
    another = other(model)
    for names in ({"ids": torch.arange(5)}, {"draw": 3}, {"ids": torch.arange(5), "draw": 3}, {}):
        same = not apart(model(images(), **names), another(images(), **names))
        assert same is (another.streams.stream == "")


def test_a_stream_is_known_by_its_name():
    model, x = made(), images(2)
    one, again, other = model.twin("attack"), made().twin("attack"), model.twin("selection")
    assert_close(one(x, draw=1), again(x, draw=1))
    assert apart(one(x, draw=1), other(x, draw=1))
    assert_close(one.twin("")(x, draw=1), model(x, draw=1))
    assert_close(one.configured(t_star=50).twin("")(x, draw=1), model.configured(t_star=50)(x, draw=1))
    assert int(one.seed) != int(model.seed) == 0
    with pytest.raises(ValueError, match="stream must be a name, as 'attack', got 3"):
        model.twin(3)


@pytest.mark.parametrize("names", [{}, {"draw": 3}], ids=["fixed", "draw"])
def test_named_noise_does_not_depend_on_the_place_in_a_batch(names):
    model, x = made(), images()
    whole, order = model(x, **names), torch.tensor([3, 0, 4])
    assert_close(model(x[order], **names), whole[order])
    with_ids = model(x, ids=torch.arange(5) + 7, **names)
    assert_close(model(x[order], ids=order + 7, **names), with_ids[order])


# A client's own generators


def test_a_generator_decides_and_moves_on():
    model, x = purifier(), images(2)

    def of(seed):
        return torch.Generator().manual_seed(seed)

    before, generator = torch.get_rng_state(), of(1)
    first, second = model(x, generator=generator), model(x, generator=generator)
    assert apart(first, second)
    assert_close(model(x, generator=of(1)), first)
    assert_close(made()(x, generator=of(1)), first)
    assert apart(model(x, generator=of(2)), first)
    twin = model.twin("attack")
    assert apart(twin(x, generator=of(1)), first)
    assert_close(twin(x, generator=of(1)), made().twin("attack")(x, generator=of(1)))
    assert torch.equal(before, torch.get_rng_state())
    with pytest.raises(ValueError, match="generator must be None where draw is given"):
        model(x, draw=0, generator=generator)


def test_noise_may_follow_torchs_own_generator():
    model, x = purifier(noise="torch"), images(2)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        first, second = model(x), model(x)
        torch.manual_seed(1)
        assert_close(model(x), first)
        assert_close(model(x), second)
        assert_close(model.configured()(x, draw=3), made()(x, draw=3))
    assert apart(first, second)


# Calls of one's own depth


def test_a_call_may_have_a_depth_and_steps_of_its_own():
    model, x = made(), images(2)
    assert_close(model(x, t_star=50), model.configured(t_star=50)(x))
    assert_close(model(x, t_star=50, num_steps=2), model.configured(t_star=50, num_steps=2)(x))
    assert_close(model(x), made()(x))
    with pytest.raises(ValueError, match=r"num_steps must be in \[1, t_star=2\], got 3"):
        model(x, t_star=2)
