"""Which tile of our 3x3 convolution is fastest on this GPU for a few images, and whether it beats cuDNN.

    python -m bench tune-conv3x3 [--network ddpm-cifar10] [--batch 1 4] [--seconds 60] [--write]

appends to bench/results/tiles-MACHINE.jsonl; `--write` then makes kernels/_conv3x3_wins.py from all such files, on any machine.
Every shape of the networks by itself, as a U-Net runs it whose norms add what surrounds a convolution: launches of a CUDA graph,
one after the other, each by weights of its own, which together do not fit into the L2 cache. The tiles are compiled on all cores
beforehand. One that is plainly wrong is a failed check; ours wins where it is faster by more than both spreads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench.core.comparison import Variant, compare, sound, within
from bench.core.run import RESULTS, Run, begin, parser
from bench.subjects.compilation import capability_of, compile_beforehand
from bench.subjects.convolutions import CONVOLUTIONS, TOY, Convolution
from bench.subjects.graphs import captured
from bench.subjects.launches import Compiled, noted
from bench.subjects.op_case import tiles_listed
from purify_engine import ops
from purify_engine.benchmark.harness import CudaClock, Timing, interleaved, read_records, wall_clock
from purify_engine.kernels import _tiles
from purify_engine.reference import layers

NETWORKS = ("ddpm-cifar10",)
BATCHES = (1, 4)
CUDNN = "cuDNN"
SECONDS = 0.4  # a shape, all tiles together
OURS = 2  # times as far from float64 as cuDNN
COLD = 2**26  # bytes of weights that a graph reads: more than an L2 cache holds
TABLE = Path(_tiles.__file__).with_name("_conv3x3_wins.py")

Problem = tuple[int, int, int, tuple[int, int]]  # the arguments of `_tiles.conv3x3`
Arguments = tuple[Any, ...]  # of the op: x, weight
Way = _tiles.ConvTile | str


class Shape(NamedTuple):
    """A small tile: enough steps are under way at a time to fetch 64 to 96 kB, as a processor's share of the memory takes."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int


SMALL = (Shape(16, 16, 128, 4, 8), Shape(16, 32, 128, 4, 6), Shape(32, 32, 128, 4, 5), Shape(16, 64, 128, 4, 5),
         Shape(32, 64, 128, 4, 4), Shape(64, 64, 64, 4, 6), Shape(64, 128, 64, 8, 4))  # fmt: skip


def main(words: list[str]) -> int:
    options = parser("tune-conv3x3", __doc__)
    options.add_argument("--network", nargs="+", choices=CONVOLUTIONS, default=NETWORKS, help="only these")
    options.add_argument("--batch", nargs="+", type=int, default=BATCHES, help="only these")
    options.add_argument("--write", action="store_true", help="make the table from all results; alone where there is no GPU")
    run, chosen = begin("tiles", options, words)
    if run.device.type == "cuda" or run.toy:
        measure_all(run, chosen)
    if chosen.write:
        TABLE.write_text(table(read_records(sorted((chosen.results or RESULTS).glob("tiles-*.jsonl")))))
    return run.close()


def measure_all(run: Run, chosen: Any) -> None:
    different = dict[Problem, tuple[str, int, Convolution]]()
    for network, batch, conv in shapes(run, chosen):  # four images of eight pixels a side are one of sixteen
        different.setdefault(problem_of(run, batch, conv), (network, batch, conv))
    todo = list(different.values())
    if run.device.type == "cuda":
        precompile(run, todo)
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        for network, batch, conv in todo:
            if run.seconds_left < 0:
                run.note(f"{network} {tuple(conv)}, batch {batch}", "not measured: no time left")
            else:
                measured(run, network, batch, conv)
    finally:
        torch.backends.cudnn.benchmark = before


def shapes(run: Run, chosen: Any) -> Iterator[tuple[str, int, Convolution]]:
    """What the kernel takes: unstrided ones of the U-Nets, wide enough for the matrix units."""
    for network, convs in TOY.items() if run.toy else [(name, CONVOLUTIONS[name]) for name in chosen.network]:
        for batch in (1,) if run.toy else chosen.batch:
            for conv in convs:
                if conv.stride == 1 and min(conv.channels, conv.out_channels) >= (8 if run.toy else 16):
                    yield network, batch, conv


def tiles(run: Run, problem: Problem) -> list[_tiles.ConvTile]:
    """The guess of `_tiles`, and small tiles: whole where they are many, with their terms split where that occupies the GPU."""
    guess = _tiles.conv3x3(*problem)
    if run.toy:
        return [guess, guess._replace(block_m=guess.block_m // 2)]
    pixels, channels, out_channels, _ = problem
    candidates = [guess]
    for rows, columns, depth, warps, stages in SMALL:
        programs, steps = _tiles.cdiv(pixels, rows) * _tiles.cdiv(out_channels, columns), 9 * _tiles.cdiv(channels, depth)
        tile = _tiles.ConvTile(rows, columns, depth, 1, False, warps, stages)
        if rows > max(16, pixels) or programs > 4 * _tiles.PROCESSORS:
            continue
        if programs >= _tiles.PROCESSORS // 8:
            candidates.append(tile)
        if programs <= _tiles.PROCESSORS // 2:
            splits = _tiles.power_of_two(max(2, min(_tiles.PROCESSORS // programs, steps // 2)) + 1) // 2
            candidates.append(tile._replace(splits=splits))
    return list(dict.fromkeys(candidates))


def precompile(run: Run, todo: list[tuple[str, int, Convolution]]) -> None:
    """Compile every tile, on all cores at once."""
    found = dict[Compiled, None]()
    with noted(run.device, lambda launched: found.setdefault(launched)):
        for _, batch, conv in todo:
            arguments, problem = arguments_of(run, batch, conv), problem_of(run, batch, conv)
            for tile in tiles(run, problem):
                with_tile(problem, tile, arguments, {})()
    compile_beforehand(run, found)


def problem_of(run: Run, batch: int, conv: Convolution) -> Problem:
    capability = capability_of(run.device)
    return batch * conv.size**2, conv.channels, conv.out_channels, capability


def measured(run: Run, network: str, batch: int, conv: Convolution) -> None:
    """Time all tiles of one shape beside cuDNN, and write down the fastest."""
    problem, arguments = problem_of(run, batch, conv), arguments_of(run, batch, conv)
    label = f"{network} {tuple(conv)}, batch {batch}"
    with torch.no_grad():
        agreeing = sound(run, label, variants(run, problem, arguments))
        timings = timed(run, {way: variant.call for way, variant in agreeing.items()}, arguments[1])
    cudnn = timings.pop(CUDNN, None)
    if not timings or cudnn is None:
        return  # why is in the lines
    best = min(timings, key=lambda tile: timings[tile].median)
    mine = timings[best]
    wins = cudnn.median - mine.median > mine.spread + cudnn.spread
    facts = {"network": network, "batch": batch, "conv": list(conv), "problem": problem, "tile": best._asdict(), "wins": wins}
    medians = [[list(tile), timing.median] for tile, timing in timings.items()]
    text = f"{label}: {1e6 * mine.median:.2f} us, {cudnn.median / mine.median:.2f} × cuDNN, by {best}"
    run.figure(text, kind="tile", **facts, medians=medians, cudnn=cudnn.record(), **mine.record())


def timed(run: Run, calls: dict[Any, Callable[..., object]], weight: Tensor) -> dict[Any, Timing]:
    """Seconds a call: on a GPU within a graph of many, by weights that no cache holds all of."""
    if run.device.type != "cuda":
        return interleaved(calls, wall_clock, seconds=0 if run.toy else SECONDS, least=1 if run.toy else 5)
    copies = [weight.clone() for _ in range(max(8, COLD // (weight.numel() * weight.element_size())))]
    replays = {way: captured([partial(call, copy) for copy in copies]) for way, call in calls.items()}
    clock = CudaClock(cold=False, queued=True, device=run.device)
    return interleaved(replays, lambda replay: clock(replay) / len(copies), seconds=SECONDS, least=7)


def variants(run: Run, problem: Problem, arguments: Arguments) -> dict[Any, Callable[[], Variant]]:
    """cuDNN and ours by every tile, each compared with float64."""
    around: dict[str, Any] = {}
    calls: dict[Any, Callable[..., Tensor]] = {CUDNN: cudnn_by(arguments, around)}
    calls |= {tile: with_tile(problem, tile, arguments, around) for tile in tiles(run, problem)}
    truth, honest = layers.conv3x3(*(each.double() for each in arguments)), calls[CUDNN]()

    def variant(call: Callable[[], Tensor]) -> Variant:
        return Variant(call, lambda: compare(call(), honest, truth, within(OURS)))

    return {way: partial(variant, call) for way, call in calls.items()}


def cudnn_by(arguments: Arguments, around: dict[str, Any]) -> Callable[..., Tensor]:
    """A call of PyTorch's convolution, by another weight if one is given."""
    return lambda weight=None: by_cudnn((arguments[0], arguments[1] if weight is None else weight), around)


def by_cudnn(arguments: Arguments, around: dict[str, Any]) -> Tensor:
    """PyTorch's convolution."""
    with ops.backend("torch"):
        return ops.conv3x3(*arguments, **around)


def arguments_of(run: Run, batch: int, conv: Convolution) -> Arguments:
    """x and weight: random data in the networks' precision."""
    dtype, layout = torch.bfloat16 if run.device.type == "cuda" else torch.float16, torch.channels_last
    draw = torch.Generator(run.device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, device=run.device, dtype=dtype, generator=draw).to(memory_format=layout)

    weight = normal(conv.out_channels, conv.channels, 3, 3) / (9 * conv.channels) ** 0.5
    return normal(batch, conv.channels, conv.size, conv.size), weight


def with_tile(problem: Problem, tile: _tiles.ConvTile, arguments: Arguments, around: dict[str, Any]) -> Callable[..., Tensor]:
    """A call of our kernel with this tile and no other, by another weight if one is given."""

    def call(weight: Tensor | None = None) -> Tensor:
        with tiles_listed({problem: tile}), ops.backend("triton"):
            return ops.conv3x3(arguments[0], arguments[1] if weight is None else weight, **around)

    return call


def table(records: list[dict[str, Any]]) -> str:
    """The module that `_tiles` reads: the last tile of every problem, where it won."""
    last = {(*record["problem"][:3], tuple(record["problem"][3])): record for record in records if record["kind"] == "tile"}
    rows = sorted((problem, tuple(record["tile"].values())) for problem, record in last.items() if record["wins"])
    lines = [
        '"""Written by `python -m bench tune-conv3x3 --write` from bench/results: cold weights, launches of a CUDA graph."""',
        "",
        "# (pixels of the result, channels, out_channels, compute capability) -> the fields of `_tiles.ConvTile`",
        "WINS: dict[tuple[int, int, int, tuple[int, int]], tuple[int, int, int, int, bool, int, int]] = {",
        *(f"    {problem}: {tile}," for problem, tile in rows),
        "}",
    ]
    return "\n".join([*lines, ""])
