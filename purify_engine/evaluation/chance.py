"""An attack's own random numbers: starts, proposals, probes, jitter. A function of the attack's seed and the image's id alone."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from purify_engine.reference.philox import derived_number, philox, philox_normal

if TYPE_CHECKING:
    from purify_engine.types import Ids

STORE = 1024  # words of each image that are kept for small requests
ATTACKS = 2**39  # the stream of seeds that no purifier's noise is drawn from: theirs end below 2**39


class Chance:
    """Random numbers [B, *shape], a row for each of `ids`; every call goes on to the next numbers, which no other call has.

    What an image is given depends on `seed`, `search`, its id and on how many calls there were before: not on its place in a
    batch, nor on which other images are attacked with it. search: which of several searches of one attack.
    """

    def __init__(self, seed: int, ids: Ids, search: int = 0) -> None:
        self.seed, self.search, self._ids, self._calls = seed, search, ids, 0
        self._store, self._used = ids.new_zeros(len(ids), 0), 0
        self._number = derived_number(derived_number(seed, ATTACKS), search)

    def uniform(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """Evenly distributed in [-1, 1]."""
        return 2 * self._words(shape).to(dtype) * 2.0**-32 - 1

    def normal(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """Of a standard normal distribution."""
        return philox_normal(*self._next(), prod(shape), dtype=dtype).view(len(self._ids), *shape)

    def below(self, limit: int, *shape: int) -> Tensor:
        """Integers in [0, `limit`), int64."""
        return (self._words(shape) * limit) >> 32

    def signs(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """1 or -1."""
        return (2 * self.below(2, *shape) - 1).to(dtype)

    def _words(self, shape: tuple[int, ...]) -> Tensor:
        """Random words in [0, 2**32), int64; few of them come from a store, since a call costs as much for one as for
        hundreds."""
        count = prod(shape)
        if count > STORE // 8:
            return philox(*self._next(), count).view(len(self._ids), *shape)
        if self._used + count > self._store.shape[1]:
            self._store, self._used = philox(*self._next(), STORE), 0
        self._used += count
        return self._store[:, self._used - count : self._used].reshape(len(self._ids), *shape)

    def _next(self) -> tuple[Tensor, Tensor, Tensor]:
        """The key, the ids and the counter word of the next call."""
        self._calls += 1
        device = self._ids.device
        key, step = (torch.tensor(number, dtype=torch.int64, device=device) for number in (self._number, self._calls))
        return key, self._ids, step
