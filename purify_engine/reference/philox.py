"""Counter-based noise: Philox 4x32-10 (Salmon et al. 2011) and Box-Muller normals (docs/math.md E5).

A number depends on (seed, image id, step, element) and on nothing else: not on the batch, its layout, the device, or earlier
draws. `element` is the NCHW index inside one image. The key of the block cipher is the seed; its counter is
(element // 4, step, id low word, id high word); word k of the output serves element 4 * (element // 4) + k. A `key` is the seed
of all images (0-dim), or one for each ([B]).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from purify_engine.types import Ids, Key, Step

MASK = 0xFFFFFFFF
FORWARD_STEP = MASK  # the counter word of the forward noise; reverse steps count 0, 1, 2, ...

Words = tuple[Tensor, Tensor, Tensor, Tensor]

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
# Seeds are derived at counters that noise cannot reach: this block index belongs to element 2**34 - 4, this step to no step.
_DERIVE_BLOCK, _DERIVE_STEP = MASK, MASK - 1


def low_high(value: Tensor) -> tuple[Tensor, Tensor]:
    """The two 32-bit words of an int64 tensor, each held in an int64."""
    return value & MASK, (value >> 32) & MASK


def philox_block(counter: Words, key: tuple[Tensor, Tensor]) -> Words:
    """Philox 4x32-10: four words for each counter. Words are int64 tensors in [0, 2**32) that broadcast against one another."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        # An int64 product wraps, which leaves its 64 bits intact: the words are cut out of it unsigned.
        low0, high0 = low_high(c0 * _MULTIPLIERS[0])
        low1, high1 = low_high(c2 * _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _KEY_INCREMENTS[0]) & MASK, (k1 + _KEY_INCREMENTS[1]) & MASK
    return c0, c1, c2, c3


def _blocks(key: Key, ids: Ids, step: Step, numel: int) -> Tensor:
    """The words of `numel` elements of each image, in whole blocks: int64 [B, ceil(numel / 4), 4]."""
    block = torch.arange((numel + 3) // 4, device=ids.device)
    id_low, id_high = low_high(ids.unsqueeze(1))
    words = philox_block((block, step & MASK, id_low, id_high), low_high(key.unsqueeze(-1)))
    return torch.stack(torch.broadcast_tensors(*words), dim=-1)


def philox(key: Key, ids: Ids, step: Step, numel: int) -> Tensor:
    """The random words of `numel` elements of each image: int64 [B, numel] in [0, 2**32)."""
    return _blocks(key, ids, step, numel).flatten(1)[:, :numel].contiguous()


def philox_normal(key: Key, ids: Ids, step: Step, numel: int, *, dtype: torch.dtype) -> Tensor:
    """Standard normals, [B, numel] in `dtype` (float32 or float64), two for each pair of words (Box & Muller 1958).

    The words (w, w') give r cos(theta) and r sin(theta) with r = sqrt(-2 log(w / 2**32 + 2**-33)), theta = 2 pi w' / 2**32.
    """
    words = _blocks(key, ids, step, numel).to(dtype) * 2.0**-32
    r = torch.sqrt(-2 * torch.log(words[..., 0::2] + 2.0**-33))
    theta = 2 * math.pi * words[..., 1::2]
    pairs = torch.stack((r * torch.cos(theta), r * torch.sin(theta)), dim=-1)
    return pairs.flatten(1)[:, :numel].contiguous()


def derive_seed(key: Key, stream: int) -> Key:
    """The seed of an independent stream of each `key` (an EOT draw, the guide's own noise): int64 of its shape, in [0, 2**63).

    Nothing is copied from the host, which a CUDA graph that is being captured refuses.
    """
    stream_low, stream_high = low_high(torch.full_like(key, stream))
    block, step = torch.full_like(key, _DERIVE_BLOCK), torch.full_like(key, _DERIVE_STEP)
    return _seed_at((block, step, stream_low, stream_high), key)


def derived_number(seed: int, stream: int) -> int:
    """`derive_seed` of a seed that the host knows, by its own integers: a GPU is spared more than a hundred tiny kernels."""
    return int(_seed_at((_DERIVE_BLOCK, _DERIVE_STEP, *low_high(stream)), seed))  # type: ignore[arg-type]


def derived_keys(seed: int, streams: Tensor) -> Tensor:
    """`derived_number` of many streams: int64 of the shape of `streams`, which are int64, and on their device.

    More than a hundred tiny kernels: cheapest on the CPU, whence the result is copied once.
    """
    return _seed_at((_DERIVE_BLOCK, _DERIVE_STEP, *low_high(streams)), seed)


def _seed_at(counter: Any, key: Any) -> Any:
    low, high, _, _ = philox_block(counter, low_high(key))
    return low | (high & 0x7FFFFFFF) << 32
