"""Whose noise a call draws: a function of (seed, stream, id, draw) and of nothing else (docs/noise.md).

Noise that is named (`ids=`, `draw=`, noise="fixed") is the same wherever the same names are used: in copies, ranks, workers,
processes. Fresh noise is a sequence of draws of one purifier's own: from the operating system's entropy where no seed is given,
else reproducible, and then told apart by sibling, copy, rank and worker.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import threading
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed
from torch import Tensor
from torch.utils.data import get_worker_info

from purify_engine.config import NoiseMode, require, require_count
from purify_engine.images import NUM_DRAWS, image_draws, image_ids
from purify_engine.reference.philox import derived_keys, derived_number
from purify_engine.tracing import refuse_recomputed_draw
from purify_engine.types import Ids, Images, NoiseKey

# The first seed streams of named streams, of siblings and copies, of ranks and of workers; draws begin at DRAWS.
DRAWS = 2**32
NAMES, SIBLINGS, RANKS, WORKERS = 2**35, 2**36, 2**37, 2**38
LARGEST_SEED = 2**63 - 1


class Streams:
    """The seeds of one purifier's noise, and how many fresh draws it has taken.

    seed: None for fresh noise that cannot be foretold; named noise is of seed 0 then. stream: "" is the defence's own, any other
    name one that is independent of it. lineage: which sibling of which it is, counted by each purifier on its own.

    A deepcopy is a sibling, and so is a replica of nn.DataParallel. A pickle begins at the first draw, and a forked process goes
    on by itself. Safe in threads.
    """

    def __init__(self, seed: int | None, stream: str = "", lineage: tuple[int, ...] = ()) -> None:
        self.seed, self.stream, self.lineage = seed, stream, lineage
        self.named = _of_stream(seed or 0, stream)  # the seed of named noise
        self._turn = threading.Lock()
        self._siblings = 0
        self._begin()

    def _begin(self) -> None:
        self._process, self._taken = os.getpid(), 0
        self._entropy = secrets.randbits(63) if self.seed is None else None

    def __reduce__(self) -> tuple[Any, ...]:
        return Streams, (self.seed, self.stream, self.lineage)

    def __deepcopy__(self, memo: dict[int, Any]) -> Streams:
        return self.sibling()

    def sibling(self) -> Streams:
        """Those of another purifier of the same seed, whose fresh noise is independent of this one's and of other siblings'."""
        with self._turn:
            number, self._siblings = self._siblings, self._siblings + 1
        return Streams(self.seed, self.stream, (*self.lineage, number))

    def fresh(self) -> int:
        """The seed of the next draw."""
        with self._turn:
            if self.seed is None and self._process != os.getpid():
                self._begin()
            draw, self._taken = self._taken, self._taken + 1
            own = self._entropy
        return derived_number(self._of_place() if own is None else own, DRAWS + draw)

    def of_generator(self, generator: torch.Generator | None) -> int:
        """A seed drawn from `generator`, or from PyTorch's own for CPUs, which moves on by one number: this stream's."""
        device = torch.device("cpu") if generator is None else generator.device
        seed = torch.randint(LARGEST_SEED, (), dtype=torch.int64, device=device, generator=generator)
        return _of_stream(int(seed), self.stream)

    def drawn(self, draw: int) -> int:
        """The seed of draw `draw` of named noise, in [0, 2**32)."""
        require(0 <= draw < NUM_DRAWS, "draw", "in [0, 2**32)", draw)
        return derived_number(self.named, DRAWS + draw)

    def drawn_each(self, draws: Tensor) -> Tensor:
        """`drawn` of many draws, int64 on the CPU: int64 of their shape."""
        require(not draws.numel() or int(draws.max()) < NUM_DRAWS, "draw", "in [0, 2**32)", draws.tolist())
        return derived_keys(self.named, DRAWS + draws)

    def _of_place(self) -> int:
        """The seed of fresh draws by sibling, rank and worker."""
        own = self.named
        for number in self.lineage:
            own = derived_number(own, SIBLINGS + number)
        rank, worker = _rank(), get_worker_info()
        if rank:
            own = derived_number(own, RANKS + rank)
        return own if worker is None else derived_number(own, WORKERS + worker.id)


def _of_stream(seed: int, stream: str) -> int:
    require(isinstance(stream, str), "stream", "a name, as 'attack'", stream)
    if not stream:
        return seed
    named = int.from_bytes(hashlib.blake2b(stream.encode(), digest_size=8).digest(), "big") >> 1
    return derived_number(derived_number(seed, NAMES), named)


def _rank() -> int:
    """This process's number in a distributed run: as torch.distributed says, or else as torchrun tells it."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank()
    told = os.environ.get("RANK", "0")
    return int(told) if told.isdecimal() else 0


def noise_of(
    streams: Streams,
    mode: NoiseMode,
    images: Images,
    *,
    ids: Ids | Sequence[int] | None = None,
    draw: int | Tensor | Sequence[int] | None = None,
    num_draws: int | None = None,
    generator: torch.Generator | None = None,
) -> NoiseKey:
    """The noise of a call on `images` [B, C, H, W]: its key is 0-dim, or [B] where images differ in their draws.

    With `num_draws` both are [num_draws * B], draw by draw. Noise that is named without ids is the same for all images, whose
    place in a batch must not matter; other noise is told apart by the place.
    """
    draws = image_draws(images, draw)
    require(draws is None or generator is None, "generator", "None where draw is given", generator)
    if num_draws is not None:
        require_count("num_draws", num_draws)
    is_named = draws is not None or (generator is None and (mode == "fixed" or (mode == "fresh" and ids is not None)))
    is_alike = ids is None and is_named
    of_images = torch.zeros_like(image_ids(images)) if is_alike else image_ids(images, ids)  # given ids are looked at: not these
    count = num_draws or 1
    if not is_named:
        if generator is not None or mode == "fresh":
            refuse_recomputed_draw()
        follows_torch = generator is not None or mode == "torch"
        seeds = [[streams.of_generator(generator) if follows_torch else streams.fresh()] for _ in range(count)]
    elif draws is None and num_draws is None:
        seeds = [[streams.named]]
    elif isinstance(draws, Tensor):
        seeds = streams.drawn_each(draws + torch.arange(count, device="cpu").unsqueeze(1)).tolist()
    else:
        seeds = [[streams.drawn((draws or 0) + k)] for k in range(count)]
    if num_draws is None and len(seeds[0]) == 1:
        return NoiseKey(torch.full((), seeds[0][0], dtype=torch.int64, device=images.device), of_images)
    keys = torch.tensor(seeds, dtype=torch.int64, device=images.device).expand(count, len(images)).reshape(-1)
    return NoiseKey(keys, of_images.repeat(count))
