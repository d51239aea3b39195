"""Where networks compute, and in which precision: the one place that decides, and that says what was decided.

`auto` is the first CUDA device where PyTorch finds one, else the CPU. Its precision is bf16, stored channels_last, on a CUDA
device of compute capability 8.0 or newer, else float32. The plan's tables, the noise and x_t stay float32 or float64 always.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from purify_engine.config import Precision, one_of, require

AUTO = "auto"
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SIXTEEN_BITS = (torch.bfloat16, torch.float16)
NETWORK_DTYPES = (torch.float32, torch.float64, *SIXTEEN_BITS)
BF16_FROM = TF32_FROM = (8, 0)  # compute capability: older GPUs have neither
BF16_FLAGS = {"avx512_bf16", "amx_bf16"}  # of x86 CPUs
NO_FLOAT64 = ("mps",)  # kinds of device without it

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def torch_device(device: str | torch.device = AUTO) -> torch.device:
    """The device that these words mean on this machine: "auto", or one of PyTorch's ("cpu", "cuda", "cuda:1", ...).

    ValueError where PyTorch does not find it here, or where it has no float64, in which the schedule is kept.
    """
    if str(device) == AUTO:
        return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    try:
        where = torch.device(device)
        require_float64(where)
        return torch.empty(0, device=where).device  # "cuda" gets its number
    except (RuntimeError, AssertionError) as missing:
        raise ValueError(f"device must be one that PyTorch {torch.__version__} finds here, got {str(device)!r}") from missing


def require_float64(device: torch.device) -> None:
    """Refuse a device that cannot hold the schedule and the noise's arithmetic."""
    if device.type in NO_FLOAT64:
        raise ValueError(f"device must be one with float64, in which the schedule is kept (cpu, cuda, ...), got {str(device)!r}")


def asked_for(precision: Precision = "auto", dtype: torch.dtype | None = None) -> Precision | torch.dtype:
    """What is said of the dtype of networks: a precision by name, or a dtype, float64 too. ValueError where it is both."""
    if dtype is None:
        return precision
    known = ", ".join(map(str, NETWORK_DTYPES))
    require(isinstance(dtype, torch.dtype) and dtype in NETWORK_DTYPES, "dtype", f"one of {known}, or None", dtype)
    require(precision == "auto", "precision", f"left out where dtype={dtype} says it", precision)
    return dtype


def dtype_on(device: torch.device, precision: Precision | torch.dtype = "auto") -> torch.dtype:
    """The dtype of networks on a device, by the precision that is asked for; a dtype is itself."""
    if isinstance(precision, torch.dtype):
        return precision
    one_of("precision", precision, Precision)
    if precision != "auto":
        return DTYPES[precision]
    return torch.bfloat16 if _capability(device) >= BF16_FROM else torch.float32


def training_precision(device: torch.device, precision: str = "auto") -> str:
    """What autocast computes in while a network is trained, its weights in float32: "float32" or "bf16".

    "auto" is bf16 on CUDA devices of compute capability 8.0 or newer and on CPUs with instructions for it, else float32.
    """
    if precision != "auto":
        return precision
    has_bf16 = _cpu_flags() & BF16_FLAGS if device.type == "cpu" else _capability(device) >= BF16_FROM
    return "bf16" if has_bf16 else "float32"


@cache
def _cpu_flags() -> frozenset[str]:
    """Instruction sets of this machine's processor; none where the system does not say."""
    try:
        found = re.search(r"^(?:flags|Features)\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    except OSError:
        return frozenset()
    return frozenset(found[1].split()) if found else frozenset()


def place(module: ModuleT, device: str | torch.device = AUTO, precision: Precision | torch.dtype = "auto") -> ModuleT:
    """`module` itself, moved to the device in the precision that it computes in there; 16 bits are stored channels_last."""
    where = torch_device(device)
    dtype = dtype_on(where, precision)
    layout: Any = {"memory_format": torch.channels_last} if dtype in SIXTEEN_BITS else {}
    return module.to(where, dtype, **layout)


def in_float32(module: ModuleT) -> ModuleT:
    """`module` itself, or where it computes in 16 bits a copy with the same weights in float32."""
    return copy.deepcopy(module).float() if in_sixteen_bits(module) else module


def in_sixteen_bits(module: nn.Module) -> bool:
    """Whether any of its parameters is."""
    return any(parameter.dtype in SIXTEEN_BITS for parameter in parameters_of(module))


def device_of(module: nn.Module) -> torch.device:
    """Where a module's parameters are."""
    return first_parameter(module).device


def dtype_of(module: nn.Module) -> torch.dtype:
    """The dtype of a module's parameters."""
    return first_parameter(module).dtype


def precision_of(module: nn.Module) -> str:
    """The precision of a module's parameters: "float32", "bf16", "fp16", or PyTorch's name of another dtype."""
    return _named(first_parameter(module).dtype)


def is_replica(module: nn.Module) -> bool:
    """Whether it is one of nn.DataParallel's copies, which live for one call."""
    return getattr(module, "_is_replica", False)


def named_parameters_of(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Its parameters; a replica of nn.DataParallel keeps them as plain attributes, and leaves them out of `parameters()`."""
    if not is_replica(module):
        yield from module.named_parameters()
        return
    for path, part in module.named_modules():
        held = part.__dict__.get("_former_parameters") if is_replica(part) else part._parameters
        for name, parameter in (held or {}).items():
            if parameter is not None:
                yield f"{path}.{name}" if path else name, parameter


def parameters_of(module: nn.Module) -> Iterator[Tensor]:
    """`named_parameters_of` without the names."""
    return (parameter for _, parameter in named_parameters_of(module)) if is_replica(module) else module.parameters()


def first_parameter(module: nn.Module) -> Tensor:
    """The one by which to tell a module's device and precision. ValueError where it has none: a quantised network, say."""
    for parameter in parameters_of(module):
        return parameter
    raise ValueError(f"a network must have parameters, which say its device and precision, got {type(module).__name__} with none")


def precision_on(device: torch.device) -> str:
    """What "auto" means on a device."""
    return _named(dtype_on(device))


def _named(dtype: torch.dtype) -> str:
    return next((name for name, known in DTYPES.items() if known is dtype), str(dtype).removeprefix("torch."))


def computing(module: nn.Module) -> dict[str, Any]:
    """What a run's record says: the device, the precision, the layout, and which float32 operations round to TF32 there."""
    parameter = first_parameter(module)
    last = any(weight.dim() == 4 and not weight.is_contiguous() for weight in parameters_of(module))
    return {
        "device": str(parameter.device),
        "precision": precision_of(module),
        "memory_format": "channels_last" if last else "contiguous",
        "gpu": torch.cuda.get_device_name(parameter.device) if parameter.is_cuda else None,
        "tf32": tf32_in(parameter.device) if parameter.dtype == torch.float32 else [],
    }


def tf32_in(device: torch.device) -> list[str]:
    """Which float32 operations PyTorch rounds to TF32 on a device, as it is set now: by default a GPU's convolutions."""
    if _capability(device) < TF32_FROM:
        return []
    settings, name, on, _ = _tf32_settings()
    return [operation for operation, setting in settings.items() if getattr(setting, name) == on]


@contextmanager
def without_tf32() -> Iterator[None]:
    """float32 operations keep float32's precision on a GPU too, in every thread."""
    settings, name, _, off = _tf32_settings()
    before = {setting: getattr(setting, name) for setting in settings.values()}
    try:
        for setting in before:
            setattr(setting, name, off)
        yield
    finally:
        for setting, value in before.items():
            setattr(setting, name, value)


def _tf32_settings() -> tuple[dict[str, Any], str, object, object]:
    """PyTorch's settings by the operations they are for; the attribute of each, and what it is where TF32 is on and off."""
    convolutions, products = torch.backends.cudnn, torch.backends.cuda.matmul
    if hasattr(convolutions, "conv"):  # PyTorch 2.9 gave each kind of operation a setting of its own
        return {"convolutions": convolutions.conv, "matrix products": products}, "fp32_precision", "tf32", "ieee"
    return {"convolutions": convolutions, "matrix products": products}, "allow_tf32", True, False


def described(module: nn.Module) -> str:
    """`computing` in words: "on cuda:0 in bf16, channels_last", "on cuda:0 in float32, TF32 in convolutions"."""
    facts = computing(module)
    words = [f"on {facts['device']} in {facts['precision']}"]
    if facts["memory_format"] == "channels_last":
        words.append("channels_last")
    if facts["tf32"]:
        words.append(f"TF32 in {' and '.join(facts['tf32'])}")
    return ", ".join(words)


def _capability(device: torch.device) -> tuple[int, int]:
    """A CUDA device's compute capability, (0, 0) elsewhere."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)
