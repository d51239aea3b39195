"""The time of the host alone: a step of the loop without graphs, on a device that takes none.

Where there is no GPU the networks are on PyTorch's meta device, where nothing is computed: operations give tensors of the right
shape from a table, and kernels in Triton go through Triton's own launcher, up to the driver. So what is left is Python, PyTorch's
dispatcher and autograd. What a GPU's driver and cuDNN take for each of their calls is not in it; those calls are counted.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from purify_engine.ops import ORDER, switches

CAPABILITY = 90  # of the GPU that is stood in for
MEMORY = {  # operations that PyTorch's own meta kernels are quick at: views, and memory without numbers
    "view", "_unsafe_view", "permute", "transpose", "select", "unbind", "expand", "alias", "detach", "t", "slice", "as_strided",
    "unsqueeze", "squeeze", "_to_copy", "empty", "empty_like", "new_empty", "empty_strided", "clone", "split", "chunk",
    "index_select", "new_zeros", "zeros", "full", "arange", "split_with_sizes", "promote_types",
}  # fmt: skip


@dataclass
class Counts:
    """What a device would have been asked for."""

    kernels: int = 0  # in Triton
    operations: int = 0  # of PyTorch's and its libraries'
    seconds: float = 0.0  # that the stand-ins for operations took


Tables = dict[Any, dict[Any, tuple[bool, list[Any]]]]  # operation -> arguments -> whether one tensor comes back, and their shapes


class _Operations(TorchDispatchMode):
    """Notes which operations are called on what, and what comes back."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: Tables = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        if isinstance(results, (Tensor, tuple, list)):
            self.tables.setdefault(func, {})[_key(args, kwargs or {})] = _shapes(results)
        return results


@contextmanager
def no_device(warm_up: Callable[[], object]) -> Iterator[Counts]:
    """Within, work on the meta device takes the ways of a GPU, and no time there. `warm_up` calls every operation to come."""
    counts = Counts()
    attention = mock.patch.object(F, "scaled_dot_product_attention", lambda q, k, v, **options: torch.empty_like(q))
    as_on_a_gpu = mock.patch.dict(ORDER, meta=ORDER["cuda"])
    with switches.anywhere(), as_on_a_gpu, attention, _no_driver(counts):
        with _Operations() as called:
            warm_up()
        with torch.library._scoped_library("aten", "IMPL") as library:
            for operation, table in called.tables.items():
                name = operation._schema.name.removeprefix("aten::")
                made_of_others = operation.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd)
                if operation.namespace == "aten" and name not in MEMORY and not made_of_others:
                    overload = operation._schema.overload_name
                    stand_in = _from_a_table(operation, table, counts)
                    library.impl(f"{name}.{overload}" if overload else name, stand_in, "Meta", allow_override=True)
            warm_up()
            yield counts


@contextmanager
def _no_driver(counts: Counts) -> Iterator[None]:
    """Triton looks for its compiled kernel, finds one that does nothing, and launches that."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import CompiledKernel
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    nowhere: Any = object()  # a device of its own: what is kept for it means nothing to others

    class Driver:
        def get_current_device(self) -> Any:
            return nowhere

        def get_current_stream(self, device: Any) -> int:
            return 0

        def get_current_target(self) -> Any:
            return GPUTarget("cuda", CAPABILITY, 32)

    def launched(*arguments: object) -> None:
        counts.kernels += 1

    def compiled(function: Any, key: str, signature: Any, device: Any, *rest: Any) -> Any:
        kernel = CompiledKernel.__new__(CompiledKernel)
        vars(kernel).update(module=0, function=0, packed_metadata=(), src=None, name="", _run=launched)
        function.device_caches[device][0][key] = kernel
        return kernel

    nothing_ready = mock.patch.object(importlib.import_module("purify_engine.kernels._launch"), "_ready", {})
    with mock.patch.object(driver, "_active", Driver()), mock.patch.object(JITFunction, "_do_compile", compiled), nothing_ready:
        yield


def _from_a_table(operation: Any, table: dict[Any, tuple[bool, list[Any]]], counts: Counts) -> Callable[..., Any]:
    """Results of the shapes that the operation had for arguments like these; where they are not in the table, on a CPU."""

    def stand_in(*arguments: Any, **options: Any) -> Any:
        started = time.thread_time()
        counts.operations += 1
        key = _key(arguments, options)
        if key not in table:
            on_a_cpu = {name: _on_a_cpu(value) for name, value in options.items()}
            table[key] = _shapes(operation(*map(_on_a_cpu, arguments), **on_a_cpu))
        single, shapes = table[key]
        if operation._schema.name.endswith("_"):
            return arguments[0]
        made = [None if of is None else torch.empty_strided(of[0], of[1], dtype=of[2], device="meta") for of in shapes]
        counts.seconds += time.thread_time() - started
        return made[0] if single else tuple(made)

    return stand_in


def _key(arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
    return tuple([_like(value) for value in arguments]), tuple(options.items())


def _shapes(results: Any) -> tuple[bool, list[Any]]:
    single = isinstance(results, Tensor)
    return single, [_like(one) for one in ([results] if single else results)]


def _like(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype
    return tuple([_like(each) for each in value]) if isinstance(value, (list, tuple)) else value


def _on_a_cpu(value: Any) -> Any:
    if isinstance(value, Tensor):
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="cpu")
    if isinstance(value, (list, tuple)):
        return [_on_a_cpu(each) for each in value]
    return torch.device("cpu") if isinstance(value, torch.device) else value

