"""A launch as a value: a host function runs it, and ahead-of-time compilation reads off it what would be compiled.

So the two cannot disagree about types, alignment or block sizes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._variants import Variant

_FLOATS = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32", torch.float64: "fp64"}
_TYPES = {**_FLOATS, torch.int64: "i64", torch.uint8: "u8"}
_NUMBERS = frozenset({type(None), bool, int, float})  # most arguments; asking PyTorch whether one is a tensor takes longer

MOST_READY = 4096
_ready: dict[tuple[object, ...], Callable[..., Any]] = {}  # what describes a launch -> a compiled kernel over its grid


class Launch(NamedTuple):
    """One kernel, how many programs of it, and its arguments by name; those in UPPER_CASE are compiled in."""

    kernel: Any  # the @triton.jit function
    programs: tuple[int, ...]
    arguments: dict[str, Any]
    num_warps: int = 4
    num_stages: int = 2
    fp_fusion: bool = True  # a·b + c may be rounded once; False where the reference's own bits are promised

    def run(self) -> None:
        """Launch on the current stream of the device that holds the tensors."""
        if not _are_several_gpus():  # the guard costs as long as a small kernel
            self._launch()
            return
        tensor = next(value for value in self.arguments.values() if isinstance(value, Tensor))
        with torch.cuda.device_of(tensor):  # Triton launches on the current device, whatever it is given
            self._launch()

    def _launch(self) -> None:
        """By what Triton compiled for such arguments before, which takes a third of the time that finding it takes Triton."""
        given, key = self._described()
        ready = _ready.get(key) if key else None
        if ready is not None:
            ready(*given)
            return
        compiled = self.kernel[self.programs](**self.arguments, **self.options)
        if key and hasattr(compiled, "__getitem__"):  # the interpreter compiles nothing
            if len(_ready) >= MOST_READY:
                _ready.clear()
            _ready[key] = compiled[(*self.programs, 1, 1)[:3]]

    def _described(self) -> tuple[list[Any], tuple[object, ...] | None]:
        """The arguments in the kernel's order, and what Triton's choice hangs on; None for it where a pointer is not aligned."""
        kernel, arguments = self.kernel, self.arguments
        given = [arguments[name] for name in kernel.arg_names]
        kinds: list[object] = [id(kernel), self.programs, self.num_warps, self.num_stages, self.fp_fusion]
        addresses, device = 0, -1
        for value in given:
            if type(value) in _NUMBERS:
                kinds.append(value)
            elif isinstance(value, Tensor):
                addresses |= value.data_ptr()
                kinds.append(value.dtype)
                device = value.get_device()
            else:
                kinds.append(value)
        return given, None if addresses & 15 or kernel.pre_run_hooks else (*kinds, device)

    @property
    def options(self) -> dict[str, Any]:
        """What Triton is told beside the arguments."""
        return {"num_warps": self.num_warps, "num_stages": self.num_stages, "enable_fp_fusion": self.fp_fusion}

    def variant(self, op: str) -> Variant:
        """What Triton would compile for these arguments: `None` and 1 are compiled in, multiples of 16 are marked ":16"."""
        plain = [parameter.name for parameter in getattr(self.kernel, "params", ()) if parameter.do_not_specialize]
        signature = {name: _type(name, value, name not in plain) for name, value in self.arguments.items()}
        constexprs = {name: self.arguments[name] for name, kind in signature.items() if kind == "constexpr"}
        return Variant(op, self.kernel, signature, constexprs, self.num_warps, self.num_stages, self.fp_fusion)


def _type(name: str, value: Any, specialised: bool) -> str:
    if name.isupper() or value is None:
        return "constexpr"
    if isinstance(value, Tensor):
        return f"*{_TYPES[value.dtype]}"
    if isinstance(value, float):
        return "fp32"
    if value == 1 and specialised:
        return "constexpr"
    return ("i32" if abs(value) < 2**31 else "i64") + (":16" if value % 16 == 0 and specialised else "")


def capability(tensor: Tensor) -> tuple[int, int]:
    """Compute capability of the GPU that holds a tensor, or `assumed`."""
    return _capability(tensor.device) if tensor.is_cuda else assumed


@cache
def _are_several_gpus() -> bool:
    return torch.cuda.device_count() > 1


assumed = (9, 0)  # where there is no GPU: in the interpreter, which runs any tile, and where kernels are compiled ahead of time


@cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)
