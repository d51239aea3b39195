"""Is fp8 worth building? cuDNN's E4M3 convolutions beside bf16's on shapes of the U-Net, in one minute.

    python -m bench fp8

appends to bench/results/loop-MACHINE.jsonl. The matrix products of a convolution's size, in fp8 with a scale a row and in bf16,
say what may be hoped for at most.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.core.comparison import Finding, Variant, compare, nearer_than, sound
from bench.core.run import Run, begin, parser
from bench.opponents import cudnn_fp8
from purify_engine.benchmark.harness import Clock, CudaClock, interleaved, wall_clock

NEAR = 0.05  # of float64's on the same rounded numbers: sums of fewer bits, and the result's own rounding
FEW = 2  # images that are compared, or rows of a matrix product
SUMS = ("FAST_FLOAT_FOR_FP8", "FLOAT")  # cuDNN's words; the first keeps fewer bits
SECONDS = 0.3  # a shape, all variants together


class Shape(NamedTuple):
    """A 3x3 convolution of stride 1."""

    channels: int
    size: int
    out_channels: int

    def __str__(self) -> str:
        return f"{self.channels}->{self.out_channels} at {self.size} px"


SHAPES = Shape(128, 32, 128), Shape(256, 16, 256), Shape(512, 16, 256), Shape(256, 8, 256)  # of the DDPM of CIFAR-10
TOY = (Shape(16, 4, 16),)
BATCHES = (64, 256)


def main(words: list[str]) -> int:
    run, _ = begin("loop", parser("fp8", __doc__), words)
    torch.backends.cudnn.benchmark = True
    for batch in (2,) if run.toy else BATCHES:
        for shape in TOY if run.toy else SHAPES:
            if run.seconds_left < 0:
                run.note(f"fp8, {shape}, batch {batch}", "not measured: no time left")
                continue
            measure(run, shape, batch)
    return run.close()


def measure(run: Run, shape: Shape, batch: int) -> None:
    """Compare all with float64 on the numbers as they are rounded, then time in turn those that agree."""
    device = run.device
    x = torch.randn(batch, shape.channels, shape.size, shape.size, device=device).to(memory_format=torch.channels_last)
    weight = torch.randn(shape.out_channels, shape.channels, 3, 3, device=device) / (9 * shape.channels) ** 0.5
    weight = weight.to(memory_format=torch.channels_last)
    clock: Clock = CudaClock(cold=True, queued=True) if device.type == "cuda" else wall_clock
    label = f"fp8, {shape}, batch {batch}"
    rows, inner, columns = batch * shape.size**2, 9 * shape.channels, shape.out_channels
    left, right = (torch.randn(size, inner, device=device) for size in (rows, columns))
    makers = {
        "bf16 cuDNN": partial(in_bf16, x, weight),
        **{f"fp8 cuDNN, sums in {how}": partial(in_fp8, x, weight, clock, how) for how in SUMS},
        "bf16 matrix product": partial(product, left.bfloat16(), right.bfloat16()),
        "fp8 matrix product": partial(product, left.to(cudnn_fp8.FP8), right.to(cudnn_fp8.FP8)),
    }
    calls = {name: agreed.call for name, agreed in sound(run, label, makers).items()}
    timings = interleaved(calls, clock, seconds=0.0 if run.toy else SECONDS, least=1 if run.toy else 5)
    flops = 2 * rows * inner * columns
    for name, timing in timings.items():
        facts = {**shape._asdict(), "batch": batch, "flops": flops}
        text = f"{label}: {name} {1e6 * timing.median:.1f} µs, {flops / timing.median / 1e12:.3g} TFLOP/s"
        run.figure(text, kind="fp8", case=f"{shape}, batch {batch}", variant=name, **facts, **timing.record())
        run.headline(f"{label}: {name}, TFLOP/s", round(flops / timing.median / 1e12, 1))


def in_bf16(x: Tensor, weight: Tensor) -> Variant:
    """cuDNN's, as PyTorch calls it."""
    low = x.bfloat16(), weight.bfloat16()
    call = partial(F.conv2d, *low, padding=1)
    return Variant(call, lambda: near(call(), F.conv2d(*exact(low), padding=1)))


def in_fp8(x: Tensor, weight: Tensor, clock: Clock, how: str) -> Variant:
    """cuDNN's by its frontend, a scale a tensor."""
    (low, scale), (filters, filter_scale) = cudnn_fp8.quantised(x), cudnn_fp8.quantised(weight)
    call = cudnn_fp8.convolution(low, filters, scale * filter_scale, clock, how)
    return Variant(call, lambda: near(call(), scale * filter_scale * F.conv2d(*exact((low, filters)), padding=1)))


def product(left: Tensor, right: Tensor) -> Variant:
    """left [M, K] times right [N, K] transposed: by PyTorch, which calls cuBLASLt."""
    call = cudnn_fp8.matrix_product(left, right) if left.dtype == cudnn_fp8.FP8 else lambda: left @ right.t()
    return Variant(call, lambda: near(call(), left[:FEW].double() @ right.double().t()))


def exact(given: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The first images and all weights, as they are rounded, in float64."""
    image, weight = given
    return image[:FEW].double(), weight.double()


def near(got: Tensor, truth: Tensor) -> Finding:
    """How far the first images, or rows, are from the truth."""
    return compare(got[: len(truth)], truth, truth, nearer_than(NEAR))
