"""Which tile of our attention is fastest on this GPU, beside PyTorch's attention: as PyTorch chooses, cuDNN's, and flash.

    python -m bench tune-attention [--network ddpm-cifar10] [--batch 1 64 256] [--seconds 25]

appends to bench/results/attention-MACHINE.jsonl. Every attention of the networks at every batch, in bfloat16, by queries, keys
and values as a U-Net's 1x1 convolution leaves them side by side; launches of a CUDA graph. The tiles are compiled on all cores
beforehand. Prints the lines of `_tiles.ATTENTION`: where another tile is faster than the one taken now by more than both spreads.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.core.comparison import AbsentError, Variant, compare, sound, within
from bench.core.run import Run, begin, parser
from bench.subjects.compilation import capability_of, compile_beforehand
from bench.subjects.graphs import captured
from bench.subjects.launches import Compiled, noted
from purify_engine.benchmark.harness import CudaClock, Timing, interleaved, wall_clock
from purify_engine.kernels import _tiles
from purify_engine.kernels.attention import attention
from purify_engine.reference import layers


class Attention(NamedTuple):
    """Heads of an image, tokens, and the width of a head."""

    heads: int
    tokens: int
    head_dim: int


Problem = tuple[int, int, int, int, tuple[int, int]]  # a key of `_tiles.ATTENTION`
QKV = tuple[Tensor, ...]

NETWORKS = {
    "ddpm-cifar10": (Attention(1, 256, 256),),
    "adm-imagenet256": (Attention(8, 1024, 64), Attention(16, 256, 64), Attention(16, 64, 64)),
}
BATCHES = {"ddpm-cifar10": (1, 64, 256), "adm-imagenet256": (1, 8)}
TOY = {"ddpm-cifar10": (Attention(2, 20, 16),)}
LIBRARY = {
    "PyTorch": None,
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
}
MOST = 6  # tiles of a shape
SECONDS = 0.3  # a shape and batch, all ways together
REPEATS = 20  # launches of a graph: one alone is as short as the clock's own noise
OURS = 2  # times as far from float64 as the specification in the networks' precision


def main(words: list[str]) -> int:
    options = parser("tune-attention", __doc__)
    options.add_argument("--network", nargs="+", choices=NETWORKS, default=tuple(NETWORKS), help="only these")
    options.add_argument("--batch", nargs="+", type=int, help="only these")
    run, chosen = begin("attention", options, words)
    work = list(problems(run, chosen))
    if not run.toy:
        compiled(run, work)
    lines = list[str]()
    for shape, batch in work:
        if run.seconds_left < 0:
            run.note(f"{tuple(shape)}, batch {batch}", "not measured: no time left")
        else:
            lines += measured(run, shape, batch)
    print("\n".join(["ATTENTION = {", *lines, "}"]), flush=True)
    return run.close()


def problems(run: Run, chosen: Any) -> Iterator[tuple[Attention, int]]:
    """Every shape at every batch."""
    for network in TOY if run.toy else chosen.network:
        for batch in chosen.batch or ((2,) if run.toy else BATCHES[network]):
            yield from ((shape, batch) for shape in (TOY if run.toy else NETWORKS)[network])


def problem_of(run: Run, shape: Attention, batch: int) -> Problem:
    capability = capability_of(run.device)
    return batch * shape.heads, shape.tokens, shape.tokens, shape.head_dim, capability


def tiles(problem: Problem) -> Sequence[_tiles.AttentionTile]:
    """The one that is taken now, then one of every number of queries, those next to its own first; then their second ones."""
    _, queries, keys, head_dim, capability = problem
    now = _tiles.attention(*problem[:4], 2, capability)
    sizes = [rows for rows in (16, 32, 64, 128) if rows <= _tiles.block(queries)]
    sizes.sort(key=lambda rows: abs(rows.bit_length() - now.block_m.bit_length()))
    each = [_tiles.attention_by(rows, keys, head_dim, capability) for rows in sizes]
    found = [fits[place] for place in range(2) for fits in each if len(fits) > place]
    return list(dict.fromkeys((now, *found)))[:MOST]


def compiled(run: Run, work: Sequence[tuple[Attention, int]]) -> None:
    """Compile what will be launched, side by side, into Triton's cache."""
    found: set[Compiled] = set()
    with noted(run.device, found.add):
        for shape, batch in work:
            problem, given = problem_of(run, shape, batch), arguments(run, shape, min(2, batch))
            for tile in tiles(problem):
                by_tile(problem_of(run, shape, min(2, batch)), tile, given)
    compile_beforehand(run, found)


def measured(run: Run, shape: Attention, batch: int) -> list[str]:
    """Time all tiles of one shape beside PyTorch's attention; a line of the table where another tile is faster."""
    problem, given, label = problem_of(run, shape, batch), arguments(run, shape, batch), f"{tuple(shape)}, batch {batch}"
    ways: dict[Any, Callable[[], Tensor]] = {tile: partial(by_tile, problem, tile, given) for tile in tiles(problem)}
    ways |= {name: partial(by_library, name, given) for name in LIBRARY}
    with torch.no_grad():
        agreeing = sound(run, label, variants(ways, given))
        timings = timed(run, {way: variant.call for way, variant in agreeing.items()})
    for way, timing in timings.items():
        name = way if isinstance(way, str) else None
        facts = {"shape": list(shape), "batch": batch, "library": name, "tile": None if name else way._asdict()}
        run.figure(f"{label}: {1e6 * timing.median:8.2f} µs by {way}", kind="attention", **facts, **timing.record())
    now, ours = tiles(problem)[0], {way: timing for way, timing in timings.items() if not isinstance(way, str)}
    return table(problem, now, ours)


def table(problem: Problem, now: _tiles.AttentionTile, timings: dict[_tiles.AttentionTile, Timing]) -> list[str]:
    """The line of `_tiles.ATTENTION` for a problem, if another tile than the one taken now is faster than that."""
    best = min(timings, key=lambda tile: timings[tile].median, default=now)
    if best == now or now in timings and timings[now].median - timings[best].median <= timings[now].spread + timings[best].spread:
        return []
    return [f"    {problem}: {best},"]


def arguments(run: Run, shape: Attention, batch: int) -> QKV:
    """Queries, keys and values [B, heads, tokens, head_dim], side by side in every pixel: random data in 16 bits."""
    dtype = torch.bfloat16 if run.device.type == "cuda" else torch.float16
    draw = torch.Generator(run.device).manual_seed(0)
    size = batch, shape.tokens, 3, shape.heads, shape.head_dim
    return torch.randn(size, device=run.device, dtype=dtype, generator=draw).transpose(1, 3).unbind(2)


def by_tile(problem: Problem, tile: _tiles.AttentionTile, given: QKV) -> Tensor:
    """Our kernel by this tile and no other."""
    before, _tiles.ATTENTION = _tiles.ATTENTION, {problem: tile}
    try:
        return attention(*given)
    finally:
        _tiles.ATTENTION = before


def by_library(name: str, given: QKV) -> Tensor:
    """PyTorch's attention, by one of its kernels or by the one that it chooses."""
    backend = LIBRARY[name]
    if backend is None:
        return F.scaled_dot_product_attention(*given)
    try:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(*given)
    except RuntimeError as fault:
        if re.search("No (available kernel|viable backend)", str(fault)):
            raise AbsentError("PyTorch has no such kernel for this") from fault
        raise


def variants(ways: dict[Any, Callable[[], Tensor]], given: QKV) -> dict[Any, Callable[[], Variant]]:
    """Each way, compared with float64."""
    truth, honest = layers.attention(*(each.double() for each in given)), layers.attention(*given)

    def variant(call: Callable[[], Tensor]) -> Variant:
        call()  # an absent one says so here
        return Variant(call, lambda: compare(call(), honest, truth, within(OURS)))

    return {way: partial(variant, call) for way, call in ways.items()}


def timed(run: Run, calls: dict[Any, Callable[..., object]]) -> dict[Any, Timing]:
    """Seconds a call: on a GPU within a graph of many."""
    if run.device.type != "cuda":
        return interleaved(calls, wall_clock, seconds=0 if run.toy else SECONDS, least=1 if run.toy else 5)
    replays = {way: captured([call] * REPEATS) for way, call in calls.items()}
    clock = CudaClock(cold=False, queued=True, device=run.device)
    return interleaved(replays, lambda replay: clock(replay) / REPEATS, seconds=SECONDS, least=7)
