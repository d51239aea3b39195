"""A GPU without numbers: tensors that say they are on "cuda", on which PyTorch checks shapes and devices and computes nothing.

PyTorch's fake tensors, which refuse two devices in one operation and any number that the host asks for. The launchers run as on
a GPU, up to the launch.
"""

from __future__ import annotations

import dataclasses
import itertools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from purify_engine.engine.plan import ReversePlan
from purify_engine.kernels import _launch
from purify_engine.ops import OPS, _packed, switches

GPU = "cuda"
_numbers = itertools.count()


@contextmanager
def fake_gpu() -> Iterator[FakeTensorMode]:
    """Within: `torch.empty(..., device="cuda")` is a tensor without numbers on a Hopper GPU, and launches are left out."""
    with (
        mock.patch.object(_packed, "_key_of", lambda tensors: tuple(map(_number, tensors))),  # there are no addresses
        mock.patch.object(switches, "_same", lambda one, other: True),  # nor numbers to compare
        mock.patch.object(_launch.Launch, "run", lambda launch: None),
        mock.patch.object(_launch, "_capability", lambda device: (9, 0)),
        mock.patch.object(nn.Module, "_apply", _applied),
        warnings.catch_warnings(),
        mock.patch.object(FakeTensorMode, "__deepcopy__", lambda mode, memo: mode, create=True),  # a copied tensor stays of it
        FakeTensorMode() as mode,
    ):
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")  # copies of a module do
        yield mode


def _number(tensor: Tensor) -> tuple[int, int]:
    return tensor.__dict__.setdefault("_number_of_its_own", next(_numbers)), tensor._version


def moved(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A network made on meta, changed into one on the GPU, channels_last."""
    return _applied(module, lambda tensor: _there(tensor, dtype if tensor.is_floating_point() else tensor.dtype))


@torch.no_grad()
def _applied(module: nn.Module, change: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """`nn.Module._apply`, which cannot put a tensor without numbers into the place of another."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = nn.Parameter(change(parameter), parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = change(buffer)
    return module


def _there(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    layout = torch.channels_last if tensor.dim() == 4 else torch.contiguous_format
    return torch.empty(tensor.shape, dtype=dtype, device=GPU).contiguous(memory_format=layout)


def plan_there(mode: FakeTensorMode, plan: ReversePlan, net_dtype: torch.dtype | None) -> ReversePlan:
    """A plan written on the host, on the GPU."""
    tables = {name: mode.from_tensor(table).to(GPU) for name, table in plan.tables.items()}
    return dataclasses.replace(plan, **tables, net_dtype=net_dtype)


class Host(TorchDispatchMode):
    """Notes every operation that reads, makes or copies a tensor on the host. (What it asks a GPU for raises by itself.)

    The ops are run by the launchers of their engine, where the dispatcher would ask for shapes only.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "purify":
            with self:
                return OPS[func.overloadpacket.__name__](*args, **kwargs)
        result = func(*args, **kwargs)
        if any(isinstance(leaf, Tensor) and leaf.device.type != GPU for leaf in tree_leaves((args, kwargs, result))):
            self.found.append(str(func))
        return result
