"""What a purifier asks of its networks' weights and layers at every call, before it uses anything that was derived from them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from purify_engine import devices
from purify_engine.config import require
from purify_engine.models.blocks import AttentionBlock, Conv1x1, Conv3x3, GroupNormSiLU, ResBlock, Upsample
from purify_engine.models.classifiers import Classifier
from purify_engine.models.denoiser import Denoiser
from purify_engine.models.derived import notice_writes
from purify_engine.models.unet import UNet

QUANTISED = ("torch.ao.", "torch.nn.quantized.", "torchao.", "bitsandbytes.")  # modules with layers and tensors of integers

# Layers that are given more than an image, or that others read the parameters of: nothing of another class can stand for them.
ASKED_FOR_MORE: dict[type[nn.Module], dict[str, tuple[type[Any], ...]]] = {
    UNet: {"norm_out": (GroupNormSiLU,), "conv_out": (Conv3x3,)},
    ResBlock: {
        "norm1": (GroupNormSiLU,),
        "conv1": (Conv3x3,),
        "norm2": (GroupNormSiLU,),
        "conv2": (Conv3x3,),
        "shortcut": (Conv1x1, nn.Identity),
    },
    AttentionBlock: {"norm": (GroupNormSiLU,)},
    Upsample: {"conv": (Conv3x3, type(None))},
}


def check_weights(denoiser: nn.Module, guide: nn.Module | None = None) -> None:
    """Have everything made anew that came of other weights, however they were changed; refuse layers that cannot be called.

    The cost, at every call: two walks over the networks' tensors, a few elements of each, on GPUs one synchronisation.
    ValueError, in one line, where a layer was quantised, wrapped where more is asked of it than another class can do, or is of
    another precision than those around it.
    """
    if devices.is_replica(denoiser):  # which lives for one call: nothing was kept of it
        return
    network = denoiser.unet if isinstance(denoiser, Denoiser) else denoiser
    if notice_writes(network, guide):
        require_usable_layers(denoiser, guide)


def require_usable_layers(denoiser: nn.Module, guide: nn.Module | None) -> None:
    """ValueError where a layer of our networks is none that they can call."""
    if isinstance(denoiser, Denoiser):
        _require_floats("denoiser", denoiser)
        _require_own_layers("denoiser", denoiser)
        _require_one_dtype("denoiser", denoiser, nn.Conv2d, but="unet.conv_out")
    if isinstance(guide, Classifier):
        _require_floats("guide", guide)
        _require_one_dtype("guide", guide, nn.Conv2d | nn.Linear)


def _require_floats(name: str, network: nn.Module) -> None:
    for path, layer in _layers(name, network):
        parts = layer, *layer._parameters.values()
        quantised = next((part for part in parts if type(part).__module__.startswith(QUANTISED)), None)
        allowed = "a layer of floats; 16 bits are had by purifier.to(torch.bfloat16)"
        require(quantised is None, path, allowed, f"{type(quantised).__qualname__} of {type(quantised).__module__}")


def _require_own_layers(name: str, network: nn.Module) -> None:
    for path, module in _layers(name, network):
        for kind, asked in ASKED_FOR_MORE.items():
            for child, classes in asked.items() if isinstance(module, kind) else ():
                _require_class(f"{path}.{child}", getattr(module, child), classes)


def _require_class(path: str, layer: Any, classes: tuple[type[Any], ...]) -> None:
    layer = getattr(layer, "_orig_mod", layer)  # of torch.compile
    known = " or ".join(known.__name__ for known in classes)
    allowed = f"{known}, which is given more than an image: merge adapters first (peft's: merge_and_unload())"
    require(isinstance(layer, classes), path, allowed, type(layer).__qualname__)


def _require_one_dtype(name: str, network: nn.Module, kinds: Any, but: str = "") -> None:
    first = devices.first_parameter(network).dtype
    for path, layer in _layers(name, network):
        if isinstance(layer, kinds) and path != f"{name}.{but}":
            found = devices.first_parameter(layer).dtype
            require(found == first, path, f"{first}, as the layers before it are", found)


def _layers(name: str, network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    return ((path or name, module) for path, module in network.named_modules(prefix=name))
