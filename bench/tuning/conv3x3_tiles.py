"""Which tile of our 3x3 convolution is fastest on this GPU, and whether it beats cuDNN with the norm's own kernel before it.

    python -m bench tune-conv3x3 [--network ddpm-cifar10] [--batch 64]     appends to bench/results/tiles-MACHINE.jsonl

Every shape of the networks as a residual block runs it (norm, bias, time embedding), cold, all tiles and cuDNN in turn. A
tile that is plainly wrong is a failed check. Prints the lines of `_tiles.CONV3X3_WINS` for the shapes where ours wins by more
than both spreads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

from bench.core.comparison import Variant, compare, sound, within
from bench.core.run import Run, begin, parser
from bench.subjects.convolutions import CONVOLUTIONS, TOY, Convolution
from bench.subjects.op_case import tiles_listed
from purify_engine import ops
from purify_engine.benchmark.harness import CudaClock, Timing, interleaved, wall_clock
from purify_engine.kernels import _tiles
from purify_engine.reference import layers

BATCHES = {"adm-imagenet256": (1, 8)}  # the others:
CIFAR_BATCHES = (1, 64, 256)
CUDNN = "cuDNN"
SECONDS = 1.0  # a shape, all tiles together
OURS = 2  # times as far from float64 as cuDNN

Problem = tuple[int, int, int, tuple[int, int]]  # the arguments of `_tiles.conv3x3`
Arguments = tuple[Any, ...]  # of the op: x, weight, bias, the norm's two, no scale and shift, the embedding


def main(words: list[str]) -> int:
    options = parser("tune-conv3x3", __doc__)
    options.add_argument("--network", nargs="+", choices=CONVOLUTIONS, help="only these")
    options.add_argument("--batch", nargs="+", type=int, help="only these")
    run, chosen = begin("tiles", options, words)
    torch.backends.cudnn.benchmark = True
    won = []
    for network, batch, conv in shapes(run, chosen):
        if run.seconds_left < 0:
            run.note(f"{network} {conv}, batch {batch}", "not measured: no time left")
            continue
        won += measured(run, network, batch, conv)
    print("\n".join(["CONV3X3_WINS = {", *(f"    {problem}: {tile}," for problem, tile in won), "}"]), flush=True)
    return run.close()


def shapes(run: Run, chosen: Any) -> Iterator[tuple[str, int, Convolution]]:
    """What the kernel takes: unstrided ones of the U-Nets, wide enough for the matrix units."""
    for network, convs in (TOY if run.toy else CONVOLUTIONS).items():
        if chosen.network is None or network in chosen.network:
            for batch in chosen.batch or ((1,) if run.toy else BATCHES.get(network, CIFAR_BATCHES)):
                for conv in convs:
                    if conv.stride == 1 and min(conv.channels, conv.out_channels) >= (8 if run.toy else 16):
                        yield network, batch, conv


def tiles(run: Run, problem: Problem) -> list[_tiles.ConvTile]:
    """The guess of `_tiles`, and every other that fits into shared memory, wastes no half of its rows and splits few terms."""
    guess = _tiles.conv3x3(*problem)
    if run.toy:
        return [guess, guess._replace(block_m=guess.block_m // 2)]
    pixels, channels, out_channels, capability = problem
    candidates = [guess]
    for rows, columns, depth, takes_norm, stages in product((64, 128), (64, 128, 256), (32, 64), (False, True), (3, 4)):
        programs = _tiles.cdiv(pixels, rows) * _tiles.cdiv(out_channels, columns)
        splits = max(1, min(_tiles.cdiv(_tiles.PROCESSORS, programs), 9 * _tiles.cdiv(channels, depth) // 8))
        fits = 2 * stages * (rows + columns) * depth <= _tiles.shared_memory(capability)
        if fits and pixels > rows // 2 and out_channels > columns // 2:
            warps = 8 if rows * columns > 128 * 64 else 4
            candidates.append(_tiles.ConvTile(rows, columns, depth, splits, takes_norm, warps, stages))
    return list(dict.fromkeys(candidates))


def measured(run: Run, network: str, batch: int, conv: Convolution) -> list[tuple[Problem, _tiles.ConvTile]]:
    """Time all tiles of one shape beside cuDNN; [(problem, tile)] where ours wins, else nothing."""
    capability = torch.cuda.get_device_capability() if run.device.type == "cuda" else (9, 0)
    problem = (batch * conv.size**2, conv.channels, conv.out_channels, capability)
    label = f"{network} {tuple(conv)}, batch {batch}"
    with torch.no_grad():
        agreeing = sound(run, label, variants(run, problem, arguments_of(run, batch, conv)))
    calls = {way: variant.call for way, variant in agreeing.items()}
    clock = CudaClock(cold=True, queued=True) if run.device.type == "cuda" else wall_clock
    timings: dict[Any, Timing] = interleaved(calls, clock, seconds=0 if run.toy else SECONDS, least=1 if run.toy else 5)
    cudnn_timing = timings.pop(CUDNN, None)
    if not timings or cudnn_timing is None:
        return []  # why is in the lines
    best = min(timings, key=lambda tile: timings[tile].median)
    best_timing = timings[best]
    wins = cudnn_timing.median - best_timing.median > best_timing.spread + cudnn_timing.spread
    facts = {"network": network, "batch": batch, "conv": list(conv), "problem": problem, "tile": best._asdict(), "wins": wins}
    text = f"{network} {tuple(conv)}, batch {batch}: {cudnn_timing.median / best_timing.median:.2f} × cuDNN with {best}"
    run.figure(text, kind="tile", **facts, cudnn=cudnn_timing.record(), **best_timing.record())
    return [(problem, best)] if wins else []


def variants(run: Run, problem: Problem, arguments: Arguments) -> dict[Any, Callable[[], Variant]]:
    """cuDNN and ours by every tile, each compared with float64."""
    around: dict[str, Any] = {"num_groups": 8 if run.toy else 32}
    calls: dict[Any, Callable[[], Tensor]] = {CUDNN: partial(by_cudnn, arguments, around)}
    calls |= {tile: with_tile(problem, tile, arguments, around) for tile in tiles(run, problem)}
    wide: Any = [None if each is None else each.double() for each in arguments]
    truth, honest = layers.conv3x3(*wide, **around), calls[CUDNN]()

    def variant(call: Callable[[], Tensor]) -> Variant:
        return Variant(call, lambda: compare(call(), honest, truth, within(OURS)))

    return {way: partial(variant, call) for way, call in calls.items()}


def by_cudnn(arguments: Arguments, around: dict[str, Any]) -> Tensor:
    """PyTorch's convolution, with the norm's own kernel before it."""
    with ops.backend("torch"):
        return torch.ops.purify.conv3x3(*arguments, **around)


def arguments_of(run: Run, batch: int, conv: Convolution) -> Arguments:
    """x, weight, bias, the norm's weight and bias, no scale and shift, the embedding: random data in the networks' precision."""
    on_gpu = run.device.type == "cuda"
    dtype, layout = torch.bfloat16 if on_gpu else torch.float16, torch.channels_last
    draw = torch.Generator(run.device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, device=run.device, dtype=dtype, generator=draw)

    x = normal(batch, conv.channels, conv.size, conv.size).to(memory_format=layout)
    weight = (normal(conv.out_channels, conv.channels, 3, 3) / (9 * conv.channels) ** 0.5).to(memory_format=layout)
    norm = 1 + 0.1 * normal(conv.channels), 0.1 * normal(conv.channels)
    return x, weight, normal(conv.out_channels), *norm, None, None, normal(1, conv.out_channels)


def with_tile(problem: Problem, tile: _tiles.ConvTile, arguments: Arguments, around: dict[str, Any]) -> Callable[[], Tensor]:
    """A call of our kernel with this tile and no other."""

    def call() -> Tensor:
        with tiles_listed({problem: tile}), ops.backend("triton"):
            return torch.ops.purify.conv3x3(*arguments, **around)

    return call
