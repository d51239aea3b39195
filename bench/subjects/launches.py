"""What Triton kernels some work launches, without launching any: to compile them beforehand, and to choose cases that share code.

On a GPU the work runs on its tensors; elsewhere on CPU tensors, as if for a GPU of the capability that is assumed.
"""

from __future__ import annotations

import importlib
import random
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar
from unittest import mock

import torch
from torch import Tensor

from purify_engine.ops import ORDER

Item = TypeVar("Item")
OF_A_KIND = 2  # pieces of code that differ in sizes only
ALIGNED = 16  # bytes; Triton compiles other code for pointers to less


class Pointer(NamedTuple):
    """What Triton looks at in a tensor."""

    dtype: torch.dtype
    aligned: bool

    def tensor(self) -> Tensor:
        """One on the CPU that Triton cannot tell from it."""
        memory = torch.empty(2 * ALIGNED, dtype=self.dtype)
        return memory if self.aligned else memory[1:]


class Compiled(NamedTuple):
    """What Triton compiles for a launch, as plain data: for another process, and as a key."""

    module: str
    kernel: str
    programs: tuple[int, ...]
    arguments: tuple[tuple[str, Any], ...]
    options: tuple[tuple[str, Any], ...]

    @classmethod
    def of(cls, launch: Any) -> Compiled:
        arguments = tuple((name, _plain(name, value)) for name, value in launch.arguments.items())
        function = launch.kernel.fn
        return cls(function.__module__, function.__name__, (1, 1, 1), arguments, tuple(launch.options.items()))

    @property
    def kind(self) -> tuple[Any, ...]:
        """The same code but for sizes: the kernel, its types, what is absent and what is switched."""
        plain = ((name, "a size" if type(value) in (int, float) else value) for name, value in self.arguments)
        return self.kernel, *plain

    def launch(self) -> tuple[Any, dict[str, Any]]:
        """The kernel, and arguments for which Triton compiles this."""
        kernel = getattr(importlib.import_module(self.module), self.kernel)
        return kernel, {name: value.tensor() if isinstance(value, Pointer) else value for name, value in self.arguments}


def _plain(name: str, value: Any) -> Any:
    """A value of an argument as Triton specialises on it: of integers that are not compiled in, whether they are 1, and of 16."""
    if isinstance(value, Tensor):
        return Pointer(value.dtype, value.data_ptr() % ALIGNED == 0)
    if name.isupper() or value is None or isinstance(value, (bool, float)):
        return value
    if value == 1:
        return 1
    large = abs(value) >= 2**31
    return (2**32 if large else 32) + (0 if value % 16 == 0 else 3)


@contextmanager
def noted(device: torch.device, note: Callable[[Compiled], None]) -> Iterator[None]:
    """Within, kernels in Triton are noted instead of launched, and their results are whatever memory held."""
    with instead_of_launches(device, lambda launch: note(Compiled.of(launch))):
        yield


@contextmanager
def instead_of_launches(device: torch.device, do: Callable[[Any], None]) -> Iterator[None]:
    """The same, `do` being given the launch itself; on the meta device, too, where tensors have no addresses."""
    from purify_engine.kernels._launch import Launch

    as_on_a_gpu = {} if device.type == "cuda" else {device.type: ("triton", "torch", "reference")}
    with mock.patch.dict(ORDER, as_on_a_gpu), mock.patch.object(Launch, "run", do), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # what is not computed is not equal to its parts
        yield


def sharing_code(items: Sequence[Item], call: Callable[[Item], object], device: torch.device) -> list[Item]:
    """Those that together run `OF_A_KIND` of every kind of code, and all others that run what these run: few compilations, many
    cases."""
    kept, kinds, chosen = set[Compiled](), Counter[tuple[Any, ...]](), []
    for item in random.Random(0).sample(items, len(items)):
        launched = set[Compiled]()
        with noted(device, launched.add):
            call(item)
        fresh = launched - kept
        if not fresh or any(kinds[one.kind] < OF_A_KIND for one in fresh):
            chosen.append(item)
            kept |= fresh
            kinds.update(one.kind for one in fresh)
    return chosen
