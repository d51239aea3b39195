"""Which tile of the norm in 16 bits is fastest on this GPU, beside the norm that runs where the switch `lean_norm` is off.

    python -m bench tune-norm [--network ddpm-cifar10] [--batch 64]     appends to bench/results/norms-MACHINE.jsonl

Every shape of the networks' norms, alone and with a residual and a bias whose sum is written, all tiles in turn. Kernels are
compiled beforehand, on all cores. Prints the lines of `_tiles.SLABS`: of each shape the tile that is best over all batches, since
an image's bits must not depend on the batch, where that is another one than is taken now.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench.core.comparison import Variant, compare, sound, within
from bench.core.run import Run, begin, parser
from bench.subjects.compilation import compile_beforehand
from bench.subjects.launches import Compiled, noted
from purify_engine.benchmark.harness import Clock, CudaClock, Timing, interleaved, wall_clock
from purify_engine.benchmark.machine import ceilings
from purify_engine.kernels import _tiles, group_norm_silu, sum_norm_silu
from purify_engine.reference import layers


class NormShape(NamedTuple):
    """Channels of x and of its skip, pixels a side, groups."""

    own: int
    others: int
    size: int
    num_groups: int = 32


CIFAR = ((128, 0, 32), (128, 128, 32), (256, 128, 32), (128, 0, 16), (256, 0, 16), (256, 256, 16), (256, 128, 16), (256, 0, 8),
         (256, 256, 8), (256, 0, 4), (256, 256, 4))  # fmt: skip
ADM = ((256, 0, 256), (256, 256, 256), (256, 256, 128), (512, 0, 64), (512, 256, 64), (512, 512, 32), (1024, 512, 16),
       (1024, 1024, 8))  # fmt: skip
NORMS = {"ddpm-cifar10": tuple(NormShape(*row) for row in CIFAR), "adm-imagenet256": tuple(NormShape(*row) for row in ADM)}
BATCHES = {"ddpm-cifar10": (1, 64, 256), "adm-imagenet256": (1, 8)}
TOY = {"ddpm-cifar10": (NormShape(16, 8, 4, 2),)}
FORMS = ("alone", "sum")
TODAY = "lean_norm off"
MOST_WHOLE, MOST_CUT, MOST_TWICE = 3, 2, 4  # tiles of a shape that are tried: in registers, in chunks, read twice
SECTOR = 32  # bytes of memory that are read or written at least
SECONDS = 0.2  # a shape and batch, all tiles together
OURS = 2  # times as far from float64 as the other kernel
IN_CACHE = 2**24  # bytes that a GPU's cache holds with what else a step needs: there a norm finds what the convolution left
REPEATS = 10  # of what is in the cache, in one timing: a launch alone is as short as the clock's own noise

Scores = dict[_tiles.SlabTile, list[float]]


def main(words: list[str]) -> int:
    options = parser("tune-norm", __doc__)
    options.add_argument("--network", nargs="+", choices=NORMS, default=tuple(NORMS), help="only these")
    options.add_argument("--batch", nargs="+", type=int, help="only these")
    run, chosen = begin("norms", options, words)
    work = list(problems(run, chosen))
    if not run.toy:
        compiled(run, work)
    copy = ceilings(run.device, toy=run.toy)["copy"]
    scores: dict[NormShape, Scores] = {}
    for shape, batch, form in work:
        if run.seconds_left < 0:
            run.note(f"{tuple(shape)}, batch {batch}, {form}", "not measured: no time left")
            continue
        for tile, share in measured(run, shape, batch, form, copy).items():
            scores.setdefault(shape, {}).setdefault(tile, []).append(share)
    print("\n".join(["SLABS = {", *table(scores), "}"]), flush=True)
    return run.close()


def problems(run: Run, chosen: Any) -> Iterator[tuple[NormShape, int, str]]:
    """(shape, batch, form): all forms of all shapes at every batch."""
    for network in TOY if run.toy else chosen.network:
        for batch in chosen.batch or ((1,) if run.toy else BATCHES[network]):
            for shape in (TOY if run.toy else NORMS)[network]:
                yield from ((shape, batch, form) for form in FORMS)


def tiles(shape: NormShape) -> Sequence[_tiles.SlabTile]:
    """The one that is taken now, and the likely ones of every kind."""
    channels, pixels = shape.own + shape.others, shape.size**2
    now = _tiles.slab(channels, shape.own, pixels, shape.num_groups)
    found = _tiles.slabs(channels, shape.own, pixels, shape.num_groups)
    assert now is not None
    whole = [tile for tile in found if not tile.cut and tile.blocks == 1 and 2 * tile.first >= SECTOR]
    cut, twice = [tile for tile in found if tile.cut], [tile for tile in found if not tile.cut and tile.blocks > 1]
    return list(dict.fromkeys((now, *whole[:MOST_WHOLE], *cut[:MOST_CUT], *twice[:MOST_TWICE])))


def compiled(run: Run, work: Sequence[tuple[NormShape, int, str]]) -> None:
    """Compile what will be launched, side by side, into Triton's cache."""
    found: set[Compiled] = set()
    for shape, batch, form in {(shape, min(2, batch), form) for shape, batch, form in work}:
        with noted(run.device, found.add):
            for call in calls(shape, arguments(run, shape, batch, form)).values():
                call()
    compile_beforehand(run, found)


def measured(run: Run, shape: NormShape, batch: int, form: str, copy: float) -> dict[_tiles.SlabTile, float]:
    """Time all tiles of one shape beside the other kernel; of each its time over that of the fastest."""
    label = f"{tuple(shape)}, batch {batch}, {form}"
    given = arguments(run, shape, batch, form)
    ways = calls(shape, given)
    agreeing = sound(run, label, variants(ways, given)) if batch == 1 else ways
    moved = bytes_moved(given)
    clock, repeats = clock_for(run, moved)

    def repeated(call: Callable[[], object]) -> None:
        for _ in range(repeats):
            call()

    timed: dict[Any, Callable[[], object]] = {name: partial(repeated, ways[name]) for name in agreeing}
    timings: dict[Any, Timing] = interleaved(timed, clock, seconds=0 if run.toy else SECONDS, least=1 if run.toy else 5)
    for name, timing in timings.items():
        seconds = timing.median / repeats
        rate = moved / seconds
        facts = {"shape": list(shape), "batch": batch, "form": form, "cold": repeats == 1, "bytes": moved, "repeats": repeats}
        tile = None if name == TODAY else name._asdict()
        text = f"{label}: {1e6 * seconds:7.1f} µs {1e-9 * rate:6.0f} GB/s {100 * rate / copy:3.0f} % of copy by {name}"
        run.figure(text, kind="norm", **facts, tile=tile, share=rate / copy, **timing.record())
    ours = {name: timing.median for name, timing in timings.items() if name != TODAY}
    return {tile: seconds / min(ours.values()) for tile, seconds in ours.items()}


def clock_for(run: Run, moved: int) -> tuple[Clock, int]:
    """How a call that moves so many bytes is timed, and how many of it at a time."""
    if run.device.type != "cuda":
        return wall_clock, 1
    small = moved < IN_CACHE
    return CudaClock(cold=not small, queued=True), REPEATS if small else 1


def arguments(run: Run, shape: NormShape, batch: int, form: str) -> tuple[Any, ...]:
    """Those of `sum_norm_silu`: random data in the networks' precision."""
    dtype = torch.bfloat16 if run.device.type == "cuda" else torch.float16
    draw = torch.Generator(run.device).manual_seed(0)

    def normal(*sizes: int) -> Tensor:
        return torch.randn(sizes, device=run.device, dtype=dtype, generator=draw)

    def images(channels: int) -> Tensor:
        return normal(batch, channels, shape.size, shape.size).contiguous(memory_format=torch.channels_last)

    x, skip = images(shape.own), images(shape.others) if shape.others else None
    channels = shape.own + shape.others
    norm = (1 + 0.1 * normal(channels), 0.1 * normal(channels), None, None, shape.num_groups, 1e-5)
    added = (images(shape.own), normal(shape.own)) if form == "sum" else (None, None)
    return x, *added, None, 1.0, skip, norm, True, form == "sum"


def calls(shape: NormShape, given: tuple[Any, ...]) -> dict[Any, Callable[[], Tensor]]:
    """Ours by every tile, and what runs where the switch is off: PyTorch's sums, and the norm's other kernel."""
    by_tile: dict[Any, Callable[[], Tensor]] = {tile: partial(with_tile, shape, tile, given) for tile in tiles(shape)}
    return {TODAY: partial(without, given), **by_tile}


def with_tile(shape: NormShape, tile: _tiles.SlabTile, given: tuple[Any, ...]) -> Tensor:
    key = (shape.own + shape.others, shape.size**2, shape.num_groups)
    before, _tiles.SLABS = _tiles.SLABS, {**_tiles.SLABS, key: tile}
    try:
        return sum_norm_silu.sum_norm_silu(*given)[1]
    finally:
        _tiles.SLABS = before


def without(given: tuple[Any, ...]) -> Tensor:
    x, residual, bias, _, _, skip, norm, silu, _ = given
    total = x if residual is None else x + bias[:, None, None] + residual
    return group_norm_silu.group_norm_silu(total if skip is None else torch.cat([total, skip], dim=1), norm, silu)


def variants(ways: dict[Any, Callable[[], Tensor]], given: tuple[Any, ...]) -> dict[Any, Callable[[], Variant]]:
    """Each way, compared with float64."""
    x, residual, bias, _, _, skip, (weight, offset, _, _, *rest), silu, _ = given
    total = x if residual is None else (x.float() + residual.float() + bias.float()[:, None, None]).to(x.dtype)
    total = total if skip is None else torch.cat([total, skip], dim=1)
    truth = layers.group_norm_silu(total.double(), weight.double(), offset.double(), None, None, *rest, silu)
    honest = layers.group_norm_silu(total, weight, offset, None, None, *rest, silu)

    def variant(call: Callable[[], Tensor]) -> Variant:
        return Variant(call, lambda: compare(call(), honest, truth, within(OURS)))

    return {name: partial(variant, call) for name, call in ways.items()}


def bytes_moved(given: tuple[Any, ...]) -> int:
    """What has to be read and written once: x, what is added, the skip, y, and the sum where it is wanted."""
    x, residual, _, _, _, skip, _, _, write_sum = given
    read = [each.numel() for each in (x, residual, skip) if each is not None]
    written = x.numel() + (0 if skip is None else skip.numel())
    return x.element_size() * (sum(read) + written * (2 if write_sum else 1))


def table(scores: dict[NormShape, Scores]) -> list[str]:
    """The lines of `_tiles.SLABS`, for the shapes of which another tile than the one taken now is best.

    Best is the least mean over batches and forms of a tile's time over the fastest's.
    """
    lines = []
    for shape, each in scores.items():
        means = {tile: math.prod(ratios) ** (1 / len(ratios)) for tile, ratios in each.items()}
        best = min(means, key=lambda tile: means[tile])
        if best != tiles(shape)[0]:
            lines.append(f"    {(shape.own + shape.others, shape.size**2, shape.num_groups)}: {best},")
    return lines
