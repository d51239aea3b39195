"""A frozen classifier without its batch norms: in evaluation they are fixed affine maps, and merge into convolutions.

PyTorch differentiates batch norm twice by taking it apart; a guide's exact gradient is spared that, and a kernel for every norm.
"""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from purify_engine import ops
from purify_engine.devices import SIXTEEN_BITS, first_parameter
from purify_engine.models.derived import State, Watched
from purify_engine.ops import switches


class ChannelAffine(nn.Module):
    """slope x + offset in every channel: a batch norm in evaluation mode."""

    slope: Tensor
    offset: Tensor

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        slope, offset = affine_of(norm)
        self.register_buffer("slope", slope.to(norm.weight.dtype))
        self.register_buffer("offset", offset.to(norm.weight.dtype))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.offset[:, None, None], x, self.slope[:, None, None])


class TwoParts(NamedTuple):
    """What a block leaves to the pass that reads it: residual + x."""

    x: Tensor
    residual: Tensor


class Twice(NamedTuple):
    """What a block leaves to two readers, a convolution and a shortcut: one image, whose two gradients one pass adds up."""

    x: Tensor
    again: Tensor


class AffineRelu(nn.Module):
    """The ReLU of an affine map of every channel; what a block has left unsummed is summed in the same pass."""

    def __init__(self, affine: nn.Module) -> None:
        super().__init__()
        assert isinstance(affine, ChannelAffine)
        self.affine = affine

    def forward(self, x: Tensor | TwoParts) -> Tensor:
        fused = isinstance(x, TwoParts) or switches.runs("affine_relu", x)
        return self.summed(x)[1] if fused else F.relu(self.affine(x))

    def summed(self, x: Tensor | TwoParts) -> tuple[Tensor, Tensor]:
        """(the sum, the ReLU of its map) in one pass."""
        if not isinstance(x, TwoParts):
            return x, ops.affine_relu(x, self.affine.slope, self.affine.offset)[1]
        return ops.affine_relu(x.x, self.affine.slope, self.affine.offset, x.residual)


class FrozenConv3x3(nn.Module):
    """A frozen 3x3 convolution, padding 1, as our op."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return ops.conv3x3(x, self.weight, self.bias, residual=residual)

    def with_relu(self, x: Tensor) -> Tensor:
        return ops.conv_relu(x, self.weight, self.bias)


class FrozenConvolution(nn.Module):
    """A frozen convolution of another size or stride, as our op; `margin` are zeros that differ from side to side."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        assert not isinstance(conv.padding, str)
        self.weight, self.bias, self.stride, self.padding = conv.weight, conv.bias, conv.stride, conv.padding
        self.margin: tuple[int, ...] | None = getattr(conv, "margin", None)

    def forward(self, x: Tensor) -> Tensor:
        return ops.conv2d(self._padded(x), self.weight, self.bias, self.stride, self.padding)

    def with_relu(self, x: Tensor) -> Tensor:
        return ops.conv_relu(self._padded(x), self.weight, self.bias, stride=self.stride, padding=self.padding)

    def _padded(self, x: Tensor) -> Tensor:
        return x if self.margin is None else F.pad(x, self.margin)


class WithRelu(nn.Module):
    """A frozen convolution and the ReLU behind it."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        assert isinstance(conv, FrozenConv3x3 | FrozenConvolution)
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor | Twice:
        if not switches.runs("masked_sum", x):
            return self.conv.with_relu(x)
        stride, padding = (self.conv.stride, self.conv.padding) if isinstance(self.conv, FrozenConvolution) else ((1, 1), (1, 1))
        return Twice(*ops.conv_relu_twice(x, self.conv.weight, self.conv.bias, stride=stride, padding=padding))


class Folding:
    """The folded twin of a classifier, made on first use and again when a weight has changed. Copies and pickles start empty."""

    def __init__(self) -> None:
        self._watched = Watched()
        self._made_of: State | None = None
        self._twin: nn.Module | None = None

    def __reduce__(self) -> tuple[type[Folding], tuple[()]]:
        return Folding, ()

    def of(self, network: nn.Module) -> nn.Module:
        """The twin; `network` itself where it trains, where a gradient to its parameters may be wanted, and where layers were
        replaced, wrapped or hooked: what they do must be done."""
        if not self._watched.roots:
            self._watched = Watched(network)
        tensors = self._watched.tensors()
        if network.training or not ops.is_frozen(tensors) or not self._watched.is_as_built():
            _require_autograd(tensors)
            return network
        if self._made_of is None or self._twin is None or not self._made_of.still_of(self._watched, tensors):
            of_one_dtype = len({tensor.dtype for tensor in tensors if tensor.is_floating_point()}) == 1
            self._twin, self._made_of = folded(network) if of_one_dtype else network, State(self._watched)
        return self._twin


def _require_autograd(tensors: list[Tensor]) -> None:
    if not torch.is_inference_mode_enabled() and any(tensor.is_inference() for tensor in tensors):
        wanted = "made outside torch.inference_mode(), since guidance needs autograd; copy.deepcopy(purifier) there will do"
        raise ValueError(f"the guide must be {wanted}, got inference tensors")


def folded(network: nn.Module) -> nn.Module:
    """A copy of `network`, in evaluation mode, whose batch norms are merged into convolutions or turned into `ChannelAffine`.

    A module says by `folds` which of its convolutions feed which of its norms and nothing else: pairs of names; by `rectified`
    which convolution or norm feeds which ReLU then; and by `fused` what runs in its place after that.
    """
    with torch.inference_mode(False), torch.no_grad():
        twin = copy.deepcopy(network).eval().requires_grad_(False)
        twin.to(memory_format=_memory_format(first_parameter(twin)))  # type: ignore[call-overload]
        for module in list(twin.modules()):
            for conv, norm in getattr(module, "folds", ()):
                _merge(module.get_submodule(conv), module.get_submodule(norm))
                module.set_submodule(norm, nn.Identity())
        for module in list(twin.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, nn.BatchNorm2d):
                    setattr(module, name, ChannelAffine(child))
                elif isinstance(child, nn.Conv2d):
                    setattr(module, name, _as_op(child))
        for module in list(twin.modules()):
            for conv, relu in getattr(module, "rectified", ()):
                module.set_submodule(conv, _with_relu(module.get_submodule(conv)))
                module.set_submodule(relu, nn.Identity())
        for module in list(twin.modules()):
            for name, child in list(module.named_children()):
                fused = getattr(child, "fused", None)
                if callable(fused):
                    setattr(module, name, fused())
    return twin


def _with_relu(module: nn.Module) -> nn.Module:
    return AffineRelu(module) if isinstance(module, ChannelAffine) else WithRelu(module)


def _memory_format(parameter: Tensor) -> torch.memory_format:
    """channels_last where matrix units read 16 bits: other filters would be laid out anew in every call."""
    low = parameter.dtype in SIXTEEN_BITS and parameter.device.type != "cpu"
    return torch.channels_last if low else ops.memory_format(parameter)


def _as_op(conv: nn.Conv2d) -> nn.Module:
    if conv.dilation != (1, 1) or conv.groups != 1 or isinstance(conv.padding, str) or conv.padding_mode != "zeros":
        return conv
    plain = (conv.kernel_size, conv.stride, conv.padding) == ((3, 3), (1, 1), (1, 1))
    return FrozenConv3x3(conv) if plain else FrozenConvolution(conv)


def affine_of(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """(slope, offset) of every channel, float64."""
    assert norm.running_mean is not None and norm.running_var is not None, "a batch norm without statistics is no fixed map"
    slope = norm.weight.double() * torch.rsqrt(norm.running_var.double() + norm.eps)
    return slope, norm.bias.double() - norm.running_mean.double() * slope


def _merge(conv: nn.Module, norm: nn.Module) -> None:
    """slope (W x + b) + offset as one convolution; computed in float64, rounded once."""
    assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
    slope, offset = affine_of(norm)
    bias = offset if conv.bias is None else offset + slope * conv.bias.double()
    conv.weight.copy_((conv.weight.double() * slope[:, None, None, None]).to(conv.weight.dtype))
    conv.bias = nn.Parameter(bias.to(conv.weight.dtype), requires_grad=False)
