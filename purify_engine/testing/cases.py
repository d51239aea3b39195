"""Inputs for every op: odd sizes, empty batches, single pixels, every layout. Tests, bench and `doctor` share them."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor

from purify_engine.testing.shapes import (
    CONV_SHAPES,
    CONV_VARIANTS,
    DRAWING,
    DTYPES,
    KEYED,
    LAYOUTS,
    NORM_SHAPES,
    NUMELS,
    RELU_VARIANTS,
    SHAPES,
    SUM_VARIANTS,
    Layout,
    laid_out,
)

# Random123's kat_vectors, philox4x32 with 10 rounds: the four counter words, the two key words, the four results.
RANDOM123 = (
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
)


@dataclass(frozen=True)
class Case:
    """One call of an op. `arguments()` and `keywords` build it, the same on every machine."""

    op: str
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    layout: Layout = "contiguous"
    variant: str = "plain"
    num_groups: int = 1
    keywords: dict[str, Any] = field(default_factory=dict, hash=False)

    def __str__(self) -> str:
        return f"{'x'.join(map(str, self.shape))}-{self.layout}-{str(self.dtype).removeprefix('torch.')}-{self.variant}"

    def arguments(self, dtype: torch.dtype | None = None) -> tuple[Any, ...]:
        """The positional arguments, on the CPU; with `dtype`, the floats in it (but for the tables, which are always float64)."""
        built = _BUILDERS[self.op](self)
        if dtype is None:
            return built
        return tuple(value.to(dtype) if self._is_float(place, value) else value for place, value in enumerate(built))

    def differentiable(self) -> tuple[Any, ...]:
        """The positional arguments, every float tensor but the tables asking for its gradient."""
        built = _BUILDERS[self.op](self)
        return tuple(
            value.detach().clone().requires_grad_() if self._is_float(place, value) else value
            for place, value in enumerate(built)
        )

    def _is_float(self, place: int, value: Any) -> bool:
        return isinstance(value, Tensor) and value.is_floating_point() and place != _TABLES.get(self.op)

    def floats(self, generator: torch.Generator, shape: Sequence[int] | None = None, dtype: torch.dtype | None = None) -> Tensor:
        """Normals of a shape, in the case's layout where they are images."""
        drawn = torch.randn(tuple(self.shape if shape is None else shape), generator=generator, dtype=torch.float64, device="cpu")
        return laid_out(drawn.to(dtype or self.dtype), self.layout if drawn.dim() == 4 else "contiguous")

    def generator(self) -> torch.Generator:
        """A source of random numbers that belongs to this case."""
        return torch.Generator().manual_seed(zlib.crc32(f"{self.op} {self}".encode()))


def _noise_arguments(case: Case, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A seed, in the variant "keys" one for each image, and ids; they use all of their 64 bits, negative ones too."""
    seeds = case.shape[0] if "keys" in case.variant else 1
    words = torch.randint(-(2**63), 2**63 - 1, (seeds + case.shape[0],), generator=generator, device="cpu")
    return words[:seeds] if "keys" in case.variant else words[0], words[seeds:]


def _guided_step(case: Case) -> tuple[Any, ...]:
    generator = case.generator()
    x_t = case.floats(generator)
    # eps as the network gives it: channels_last, and in the network's own precision
    eps = case.floats(generator, dtype=torch.bfloat16 if "bfloat16" in case.variant else case.dtype)
    grad = None if "unguided" in case.variant else case.floats(generator)
    rows = torch.randn(4, 4, generator=generator, dtype=torch.float64, device="cpu")
    rows[3, 3] = 0  # the last row of a plan draws no noise
    step = torch.randint(0, 4, (), generator=generator, device="cpu")
    return x_t, eps, grad, rows, step, *_noise_arguments(case, generator)


def _q_sample(case: Case) -> tuple[Any, ...]:
    generator = case.generator()
    alpha_bar = torch.rand((), generator=generator, dtype=torch.float64, device="cpu")
    marginal = torch.stack((alpha_bar.sqrt(), (1 - alpha_bar).sqrt()))
    return case.floats(generator), marginal, torch.tensor(0xFFFFFFFF, device="cpu"), *_noise_arguments(case, generator)


def _philox(case: Case) -> tuple[Any, ...]:
    generator = case.generator()
    key, ids = _noise_arguments(case, generator)
    return key, ids, torch.randint(0, 2**32, (), generator=generator, device="cpu"), case.shape[1]


def _group_norm_silu(case: Case) -> tuple[Any, ...]:
    generator = case.generator()
    batch, channels = case.shape[:2]
    x = case.floats(generator) * 3 + 1.5  # off centre, as activations are
    weight, bias = (case.floats(generator, (channels,)) for _ in range(2))
    scale = case.floats(generator, (batch, channels)) if "scale" in case.variant else None
    shift = case.floats(generator, (batch, channels)) if "shift" in case.variant else None
    return x, weight, bias, scale, shift, case.num_groups, 1e-5, "linear" not in case.variant


def _group_norm_silu_backward(case: Case) -> tuple[Any, ...]:
    return case.floats(case.generator().manual_seed(1)), *_group_norm_silu(case)


def _sum_norm_silu(case: Case) -> tuple[Any, ...]:
    """Variants name what is added. A skip has as many channels as there are groups, so that most groups straddle it."""
    generator = case.generator()
    batch, channels, *pixels = case.shape
    both = channels + (case.num_groups if "skip" in case.variant else 0)

    def optional(part: str, *shape: int) -> Tensor | None:
        return case.floats(generator, shape) if part in case.variant else None

    x = case.floats(generator) * 3 + 1.5  # off centre, as activations are
    residual, bias = optional("residual", batch, channels, *pixels), optional("bias", channels)
    temb = optional("temb", 1 if "shared" in case.variant else batch, channels)
    skip = optional("skip", batch, case.num_groups, *pixels)
    weight, norm_bias = (case.floats(generator, (both,)) for _ in range(2))
    norm = weight, norm_bias, optional("scale", batch, both), optional("shift", batch, both)
    gain = 0.5**0.5 if "gain" in case.variant else 1.0
    settings = case.num_groups, 1e-5, gain, "linear" not in case.variant, "only" not in case.variant
    return x, residual, bias, temb, skip, *norm, *settings


def _sum_norm_silu_backward(case: Case) -> tuple[Any, ...]:
    generator = case.generator().manual_seed(1)
    grad_sum = case.floats(generator) if "residual" in case.variant else None
    x, *norm, num_groups, norm_eps, silu = _group_norm_silu(case)
    return case.floats(generator), x, *norm, grad_sum, num_groups, norm_eps, silu


def _residual_sum(case: Case) -> tuple[Any, ...]:
    x, residual, bias, *_ = _sum_norm_silu(case)
    return x, bias, residual, 0.5**0.5 if "gain" in case.variant else 1.0


def _attention(case: Case) -> tuple[Any, ...]:
    generator = case.generator()
    return tuple(case.floats(generator) for _ in range(3))


def _attention_backward(case: Case) -> tuple[Any, ...]:
    generator = case.generator()
    return tuple(case.floats(generator) for _ in range(4))


def _conv3x3(case: Case) -> tuple[Any, ...]:
    """Variants name what surrounds the convolution: norm, scale, bias, temb, residual, up. K is 2 C, or C beside a residual."""
    generator = case.generator()
    batch, channels, height, width = case.shape
    out_channels, zoom = channels * (1 if "residual" in case.variant else 2), 2 if "up" in case.variant else 1
    x, weight = case.floats(generator), case.floats(generator, (out_channels, channels, 3, 3)) / (3 * channels**0.5)

    def optional(part: str, shape: Sequence[int]) -> Tensor | None:
        return case.floats(generator, shape) if part in case.variant else None

    per_channel = [optional(part, (channels,)) for part in ("norm", "norm")]
    modulation = [optional("scale", (batch, channels)), optional("scale", (batch, channels))]
    temb = optional("temb", (1 if "shared" in case.variant else batch, out_channels))
    residual = optional("residual", (batch, out_channels, zoom * height, zoom * width))
    gain = 0.5**0.5 if "gain" in case.variant else 1.0
    around = (*per_channel, *modulation, temb, residual, case.num_groups, 1e-5, gain, zoom == 2)
    return x, weight, optional("bias", (out_channels,)), *around


def _conv3x3_backward(case: Case) -> tuple[Any, ...]:
    generator = case.generator()
    batch, channels, height, width = case.shape
    zoom = 2 if case.variant == "up" else 1
    grad_out = case.floats(generator, (batch, channels, zoom * height, zoom * width))
    return grad_out, case.floats(generator, (channels, 2 * channels, 3, 3)) / (3 * channels**0.5), zoom == 2


def _relu_conv3x3(case: Case) -> tuple[Any, ...]:
    """Variants name the affine map before the ReLU ("line") and the residual. K is 2 C, or C beside a residual."""
    x, weight, bias, *_, residual, _, _, _, _ = _conv3x3(case)
    generator = case.generator().manual_seed(2)
    slope, offset = (case.floats(generator, x.shape[1:2]) if "line" in case.variant else None for _ in range(2))
    return x, weight, bias, slope, offset, residual


def _relu_conv3x3_backward(case: Case) -> tuple[Any, ...]:
    x, weight, _, slope, offset, _ = _relu_conv3x3(case)
    grad_out = case.floats(case.generator().manual_seed(1), (len(x), len(weight), *x.shape[2:]))
    return grad_out, x, weight, slope, offset


def _affine_relu(case: Case) -> tuple[Any, ...]:
    generator = case.generator()
    x, residual = (case.floats(generator) for _ in range(2))
    slope, offset = (case.floats(generator, x.shape[1:2]) for _ in range(2))
    return x, slope, offset, residual if "residual" in case.variant else None


def _affine_relu_backward(case: Case) -> tuple[Any, ...]:
    y, slope, _, grad_sum = _affine_relu(case)
    return case.floats(case.generator().manual_seed(1)), y.relu(), slope, grad_sum


def _to_images(case: Case) -> tuple[Any, ...]:
    return case.floats(case.generator()), {"uint8": torch.uint8, "float16": torch.float16}.get(case.variant, case.dtype)


_BUILDERS = {
    "philox": _philox,
    "philox_normal": _philox,
    "q_sample": _q_sample,
    "guided_step": _guided_step,
    "group_norm_silu": _group_norm_silu,
    "group_norm_silu_backward": _group_norm_silu_backward,
    "sum_norm_silu": _sum_norm_silu,
    "sum_norm_silu_backward": _sum_norm_silu_backward,
    "residual_sum": _residual_sum,
    "attention": _attention,
    "attention_backward": _attention_backward,
    "conv3x3": _conv3x3,
    "conv3x3_backward": _conv3x3_backward,
    "relu_conv3x3": _relu_conv3x3,
    "relu_conv3x3_backward": _relu_conv3x3_backward,
    "affine_relu": _affine_relu,
    "affine_relu_backward": _affine_relu_backward,
    "to_images": _to_images,
}
_TABLES = {"q_sample": 1, "guided_step": 3}  # where the plan's numbers stand among the arguments


def cases(op: str) -> list[Case]:
    """At least 200 cases of an op, each a shape, a dtype, a layout and a variant."""
    found = _cases(op)
    keyed = [case for case in found if op in DRAWING and case.shape in KEYED and case.layout == "contiguous"]
    return found + [replace(case, variant=f"{case.variant}-keys") for case in keyed]


def _cases(op: str) -> list[Case]:
    if op == "philox":
        return [Case(op, shape) for shape in product((0, 1, 3, 5), NUMELS)]
    if op == "philox_normal":
        sizes = product((0, 1, 3, 5), NUMELS, DTYPES)
        return [Case(op, (batch, numel), dtype, keywords={"dtype": dtype}) for batch, numel, dtype in sizes]
    if op == "q_sample":
        copies = (None, torch.float32, torch.bfloat16)
        return [
            Case(op, shape, dtype, layout, f"net_{copy}".replace("torch.", ""), keywords={"net_dtype": copy})
            for shape, dtype, layout, copy in product(SHAPES, DTYPES, LAYOUTS, copies)
        ]
    if op == "guided_step":
        variants = ("guided", "unguided", "guided-bfloat16-eps")
        return [Case(op, *rest, keywords={"net_dtype": torch.float32}) for rest in product(SHAPES, DTYPES, LAYOUTS, variants)]
    if op.startswith("attention"):
        shapes = ((0, 2, 3, 4), (1, 1, 1, 1), (2, 1, 16, 8), (1, 4, 9, 5))
        return [Case(op, *rest) for rest in product(shapes, DTYPES, LAYOUTS)]
    if op == "conv3x3":
        return [
            Case(op, shape, dtype, layout, variant, groups)
            for (shape, groups), dtype, layout, variant in product(CONV_SHAPES, DTYPES, LAYOUTS, CONV_VARIANTS)
        ]
    if op == "conv3x3_backward":
        ways = product(CONV_SHAPES, DTYPES, LAYOUTS, ("plain", "up"))
        return [Case(op, shape, dtype, layout, variant) for (shape, _), dtype, layout, variant in ways]
    if op.startswith(("relu_conv3x3", "affine_relu")):
        parts: tuple[str, ...] = RELU_VARIANTS if op.startswith("relu_conv3x3") else ("plain", "residual")
        ways = product(CONV_SHAPES, DTYPES, LAYOUTS, parts)
        return [Case(op, shape, dtype, layout, variant) for (shape, _), dtype, layout, variant in ways]
    if op in SUM_VARIANTS:
        ways = product(CONV_SHAPES, DTYPES, LAYOUTS, SUM_VARIANTS[op])
        return [Case(op, shape, dtype, layout, variant, groups) for (shape, groups), dtype, layout, variant in ways]
    if op == "to_images":
        return [Case(op, *rest) for rest in product(SHAPES, DTYPES, LAYOUTS, ("plain", "float16", "uint8"))]
    variants = ("plain", "scale-shift", "shift-linear")
    return [
        Case(op, shape, dtype, layout, variant, groups)
        for (shape, groups), dtype, layout, variant in product(NORM_SHAPES, DTYPES, LAYOUTS, variants)
    ]
