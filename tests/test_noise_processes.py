"""Who shares noise with whom across processes (docs/noise.md): ranks, workers of a DataLoader, a second process."""

from __future__ import annotations

import multiprocessing
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed
from torch.utils.data import DataLoader, Dataset

from tests.test_purifier import images, purifier
from tests.test_purifier_state import apart, assert_close

SEEDS = {"no seed": None, "a seed": 5}
NAMES = {"ids": [7, 8], "draw": 3}
ROOT = Path(__file__).parents[1]


def drawn(seed):
    """What a purifier draws of its own, twice, and what it draws by name."""
    torch.set_num_threads(1)  # a forked process must not wait for its parent's threads
    model = purifier().reseed(seed)
    return [model(images(2)) for _ in range(2)], model(images(2), **NAMES)


def all_apart(outs):
    assert all(apart(one, two) for place, one in enumerate(outs) for two in outs[:place])


def all_equal(outs):
    for out in outs[1:]:
        assert_close(out, outs[0])


# Ranks


def in_a_rank(rank, shared, seed, sending):
    torch.distributed.init_process_group("gloo", init_method=f"file://{shared}", rank=rank, world_size=2)
    sending.send(pickle.dumps(drawn(seed)))  # as bytes: a tensor would be sent as memory that ends with this process
    torch.distributed.destroy_process_group()


def in_two_ranks(shared, seed):
    context, found = multiprocessing.get_context("fork"), []
    pipes = [context.Pipe(duplex=False) for _ in range(2)]
    ranks = [context.Process(target=in_a_rank, args=(rank, shared, seed, pipes[rank][1])) for rank in range(2)]
    for process in ranks:
        process.start()
    for receiving, _ in pipes:
        assert receiving.poll(60)
        found.append(pickle.loads(receiving.recv()))
    for process in ranks:
        process.join()
    return found


@pytest.mark.parametrize("seed", SEEDS.values(), ids=SEEDS)
def test_two_ranks_draw_apart_and_agree_on_what_is_named(tmp_path, seed):
    one, other = in_two_ranks(tmp_path / "first", seed)
    all_apart([*one[0], *other[0]])
    all_equal([one[1], other[1]])
    if seed is not None:
        again, _ = in_two_ranks(tmp_path / "second", seed)
        all_equal([one[0][0], again[0][0]])


# Workers of a DataLoader


class Purified(Dataset):
    """Each item is what the purifiers of its worker draw next, with and without a seed, and what they draw by name."""

    def __init__(self):
        self.models = [purifier(), purifier().reseed(5)]

    def __len__(self):
        return 4

    def __getitem__(self, item):
        x = images(1)
        return [model(x)[0] for model in self.models], self.models[0](x, ids=[item])[0]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_four_workers_draw_apart_and_agree_on_what_is_named(start):
    here = Purified()
    loader = DataLoader(here, num_workers=4, batch_size=1, multiprocessing_context=start, timeout=120)
    items = [([own[0], seeded[0]], named[0]) for (own, seeded), named in loader]
    all_apart([out for drawn_by_one, _ in items for out in drawn_by_one])
    if start == "fork":  # without a seed no loader repeats another; with one it does, worker by worker
        again = [([own[0], seeded[0]], named[0]) for (own, seeded), named in loader]
        all_apart([items[0][0][0], again[0][0][0]])
        all_equal([torch.stack([seeded for (_, seeded), _ in found]) for found in (items, again)])
    all_equal([torch.stack([named for _, named in items]), torch.stack([here[item][1] for item in range(4)])])


# A second process


def test_a_second_process_repeats_a_seed_and_what_is_named_and_nothing_else(tmp_path):
    script = (
        "import pickle, sys; from tests.test_noise_processes import drawn, SEEDS; "
        "pickle.dump([drawn(seed) for seed in SEEDS.values()], open(sys.argv[1], 'wb'))"
    )
    subprocess.run([sys.executable, "-c", script, tmp_path / "found"], check=True, cwd=ROOT, timeout=300)
    (own, named), (seeded, _) = pickle.loads((tmp_path / "found").read_bytes())
    (own_here, named_here), (seeded_here, _) = (drawn(seed) for seed in SEEDS.values())
    all_apart([*own, *own_here])
    all_equal([named, named_here])
    for there, here in zip(seeded, seeded_here, strict=True):
        assert_close(there, here)
