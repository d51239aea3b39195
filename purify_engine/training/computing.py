"""How a training computes: in which precision and layout, on the network's device, and what its card says of that."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from purify_engine.config import Training
from purify_engine.devices import SIXTEEN_BITS, device_of, tf32_in, training_precision
from purify_engine.types import Images


class Computing:
    """The precision and the memory format of a network's training, decided by its device and configuration.

    Weights, gradients and the optimiser's state stay as the network has them; in bf16, autocast has the convolutions and matrix
    products computed from 16 bits. channels_last is taken with bf16 and on GPUs.
    """

    def __init__(self, model: nn.Module, config: Training) -> None:
        self.device = device_of(model)
        self.precision = training_precision(self.device, config.precision)
        is_last = self.precision == "bf16" or self.device.type == "cuda"
        self.layout = torch.channels_last if is_last else torch.contiguous_format
        if is_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model = model
        self.on_trial = config.compile
        if config.compile:
            model.compile()

    def autocast(self) -> AbstractContextManager[Any]:
        """Inside, the network computes in the precision. Casts of weights are not kept: one made without gradients has none."""
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16, cache_enabled=False)

    def laid_out(self, images: Images) -> Images:
        """A batch in the network's memory format."""
        return images.contiguous(memory_format=self.layout)

    def give_up_compiling(self) -> bool:
        """Run as written where nothing that was compiled has run yet; whether that changes anything."""
        changes, self.on_trial = self.on_trial, False
        if changes:
            self.release()
        return changes

    def release(self) -> None:
        """Leave the network as it was given, which is not compiled."""
        self.model._compiled_call_impl = None

    def described(self) -> dict[str, Any]:
        """What a checkpoint and a card say of it."""
        return {
            "device": self.device.type,
            "processor": torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "",
            "threads": torch.get_num_threads() if self.device.type == "cpu" else 0,
            "instructions": torch.backends.cpu.get_cpu_capability() if self.device.type == "cpu" else "",
            "precision": self.precision,
            "memory_format": "channels_last" if self.layout is torch.channels_last else "contiguous",
            "tf32": tf32_in(self.device),
            "torch": str(torch.__version__),
        }


def fused_on(model: nn.Module) -> bool | None:
    """Whether an optimiser's step is one kernel: on GPUs; None leaves it to PyTorch."""
    return True if device_of(model).type == "cuda" else None


def in_full(logits: Tensor) -> Tensor:
    """Logits in float32 where autocast gave 16 bits: sums of exponentials are taken in no less."""
    return logits.float() if logits.dtype in SIXTEEN_BITS else logits
