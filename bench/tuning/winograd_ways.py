"""Which way of convolving 3x3 is fastest on this CPU, for every shape of the benchmarked networks, with cold caches.

    python -m bench tune-winograd [--network ddpm-cifar10] [--batch 1] [--instruction-set avx2] [--write]

appends to bench/results/tiles-cpu-MACHINE.jsonl; `--write` then makes purify_engine/ops/conv3x3/table.py from all such files.
Every tiling that `tiling.admitted` allows and PyTorch's own convolution are compared with float64, then timed in turn,
on two threads. Transformed
filters are kept only where that gains more than 5 %: they take up to four times the memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.core.clocks import ColdClock
from bench.core.comparison import Variant, compare, sound
from bench.core.run import RESULTS, Run, begin, parser
from bench.subjects.convolutions import CONVOLUTIONS, TOY, Convolution
from purify_engine import ops
from purify_engine.benchmark.harness import Timing, interleaved, read_records
from purify_engine.ops.conv3x3 import tiling, winograd
from purify_engine.ops.conv3x3.tiling import Tiling
from purify_engine.reference import layers
from purify_engine.testing.yardstick import assert_as_good_as_direct

NETWORKS = ("ddpm-cifar10", "wrn-28-10", "resnet18")
BATCHES = (1, 2, 4, 8, 16)
BLOCKS = (24, 48)
COMPARED = 2  # images
SECONDS = 0.8  # a shape, all ways together
KEEPING_GAINS = 1.05
TABLE = Path(tiling.__file__).with_name("table.py")

Way = Tiling | None  # None: PyTorch's convolution


def main(words: list[str]) -> int:
    options = parser("tune-winograd", __doc__)
    options.add_argument("--network", nargs="+", choices=NETWORKS, help="only these")
    options.add_argument("--batch", nargs="+", type=int, help="only these")
    options.add_argument("--instruction-set", nargs="+", choices=ops.instruction_sets(), help="only these")
    options.add_argument("--write", action="store_true", help="make the table from all results")
    run, chosen = begin("tiles-cpu", options, words)
    instruction_set, threads = ops.instruction_set(), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for isa in chosen.instruction_set or [name for name in ops.instruction_sets() if name != "portable"]:
            ops.use_instruction_set(isa)
            for batch, conv in shapes(run, chosen):
                if run.seconds_left < 0:
                    run.note(f"{isa} {tuple(conv)}, batch {batch}", "not measured: no time left")
                else:
                    measure(run, isa, batch, conv)
    finally:
        ops.use_instruction_set(instruction_set)
        torch.set_num_threads(threads)
    if chosen.write:
        TABLE.write_text(table(read_records(sorted((chosen.results or RESULTS).glob("tiles-cpu-*.jsonl")))))
    return run.close()


def shapes(run: Run, chosen: Any) -> Iterator[tuple[int, Convolution]]:
    """Every problem once, though networks share some."""
    networks = TOY.values() if run.toy else [CONVOLUTIONS[name] for name in chosen.network or NETWORKS]
    convs = dict.fromkeys(conv._replace(repeats=1) for network in networks for conv in network)
    for conv, batch in product(convs, chosen.batch or ((1,) if run.toy else BATCHES)):
        if conv.stride == 1 and tiling.admitted(batch, conv.size, conv.size, conv.channels, conv.out_channels):
            yield batch, conv
        elif run.toy:
            yield batch, conv._replace(channels=16, out_channels=16, stride=1)


def measure(run: Run, isa: str, batch: int, conv: Convolution) -> None:
    """Time all ways of one shape that agree with float64, and write down the winner."""
    x = torch.randn(batch, conv.channels, conv.size, conv.size).to(memory_format=torch.channels_last)
    weight, bias = torch.randn(conv.out_channels, conv.channels, 3, 3), torch.randn(conv.out_channels)
    possible = tiling.admitted(batch, conv.size, conv.size, conv.channels, conv.out_channels)
    ways: list[Way] = [None, *(Tiling(*how) for how in product(possible, BLOCKS, (False, True)))]
    label = f"{isa} {tuple(conv)}, batch {batch}"
    with torch.no_grad():
        agreeing = sound(run, label, variants(ways, x, weight, bias))
        calls = {way: variant.call for way, variant in agreeing.items()}
        seconds, least = (0.0, 1) if run.toy else (SECONDS, 7)
        timings: dict[Any, Timing] = interleaved(calls, ColdClock(x), seconds=seconds, least=least, warm_up=1)
    if None not in timings:
        run.note(label, "no winner: PyTorch's convolution is not among those that agree")
        return
    best = min(timings, key=lambda way: timings[way].median * (KEEPING_GAINS if way and way.keep else 1))
    gain = timings[None].median / timings[best].median
    problem = [batch, conv.size, conv.channels, conv.out_channels]
    medians = {str(list(way) if way else "direct"): timing.median for way, timing in timings.items()}
    text = f"{label}: {best or 'direct'}, {gain:.2f} x PyTorch"
    run.figure(text, kind="cpu-tile", instruction_set=isa, problem=problem, best=best and list(best), medians=medians)


def variants(ways: list[Way], x: Tensor, weight: Tensor, bias: Tensor) -> dict[Way, Callable[[], Variant]]:
    """Every way to convolve, the first images of its result compared with float64."""

    def convolved(way: Way) -> Tensor:
        if way is None:
            return layers.conv3x3(x, weight, bias)
        return winograd.convolved(x, weight, ops.Around(bias), tile=way)

    truth = F.conv2d(x[:COMPARED].double(), weight.double(), bias.double(), padding=1)
    honest = convolved(None)[:COMPARED]

    def variant(way: Way) -> Variant:
        call = partial(convolved, way)
        return Variant(call, lambda: compare(call()[:COMPARED], honest, truth, assert_as_good_as_direct))

    return {way: partial(variant, way) for way in ways}


def table(records: list[dict[str, Any]]) -> str:
    """The module that `tiling.py` reads: the last winner of every problem, by instruction set."""
    tiles = [record for record in records if record["kind"] == "cpu-tile"]
    rows = {(record["instruction_set"], *record["problem"]): record["best"] for record in tiles}
    lines = [
        '"""Written by `python -m bench tune-winograd --write` from bench/results: cold caches, two threads."""',
        "",
        "# instruction set -> {(images, side, channels, out_channels): (results, block, keep); None: PyTorch's convolution}",
        "WINNERS: dict[str, dict[tuple[int, int, int, int], tuple[int, int, bool] | None]] = {",
    ]
    for isa in sorted({isa for isa, *_ in rows}):
        lines.append(f'    "{isa}": {{')
        problems = sorted((tuple(problem), best) for (name, *problem), best in rows.items() if name == isa)
        lines += [f"        {problem}: {best and tuple(best)}," for problem, best in problems]
        lines.append("    },")
    return "\n".join([*lines, "}", ""])
