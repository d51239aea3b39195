"""Plain pickles of networks, as EDM and StyleGAN publish them: read as data, with nothing in them ever executed.

Such a file holds modules of its own classes, and their source code beside them, which their unpickler would run. Here a pickle
may name a few classes and functions only, each of which has a stand-in that keeps what it is given; anything else is refused.
"""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

DEEPEST = 32  # modules within modules
A_TREE = "a tree of modules, at most 32 within one another"


class Recorded:
    """A module of a pickle: the name of its class, and its attributes."""

    class_name = ""

    def __init__(self) -> None:
        self.state: Mapping[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        self.state = state if isinstance(state, Mapping) else {}

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Its parameters and persistent buffers, by the names that `state_dict` gives them.

        ValueError where its modules are no tree of at most 32 levels: a small file could hold more of them than can be walked.
        """
        return self._walked(DEEPEST, set())

    def _walked(self, depth: int, met: set[int]) -> Iterator[tuple[str, Tensor]]:
        if depth == 0 or id(self) in met:
            raise ValueError(f"a pickle must hold {A_TREE}")
        met.add(id(self))
        passing = self.state.get("_non_persistent_buffers_set", ())
        for kind in ("_parameters", "_buffers"):
            for name, tensor in self._named(kind, Tensor):
                if kind == "_parameters" or name not in passing:
                    yield name, tensor
        for name, module in self._named("_modules", Recorded):
            for inner, tensor in module._walked(depth - 1, met):
                yield f"{name}.{inner}", tensor

    def _named(self, kind: str, of: type) -> Iterator[tuple[str, Any]]:
        held = self.state.get(kind)
        for name, value in held.items() if isinstance(held, Mapping) else ():
            if isinstance(name, str) and isinstance(value, of):
                yield name, value


class Ignored:
    """What is not needed of a pickle: numbers and arrays of NumPy."""

    def __setstate__(self, state: Any) -> None:
        pass


class StandIn:
    """Called in place of a function that a pickle names. A pickle cannot change it."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise ValueError("it changes what reads it")


def _recorded(meta: Any) -> Recorded:
    """A module whose class's source is in `meta`, and is left there."""
    made = Recorded()
    name = meta.get("class_name")
    made.class_name = name[:80] if isinstance(name, str) else ""
    made.__setstate__(meta.get("state"))
    return made


def _storage(data: Any) -> Any:
    """A storage, in `torch.save`'s older format."""
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _tensor(storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    """PyTorch would make the storage larger, by whatever the memory holds."""
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    if (last + 1) * storage.dtype.itemsize > storage._untyped_storage.nbytes():
        raise ValueError("a tensor reaches beyond what is stored of it")
    return torch._utils._rebuild_tensor(storage, offset, size, stride)


# What a pickle may name, and what stands for it.
KNOWN: Mapping[tuple[str, str], Any] = {
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): StandIn(_recorded),
    ("torch.storage", "_load_from_bytes"): StandIn(_storage),
    ("torch._utils", "_rebuild_tensor"): StandIn(_tensor),
    ("torch._utils", "_rebuild_tensor_v2"): StandIn(_tensor),
    ("torch._utils", "_rebuild_parameter"): StandIn(lambda tensor, *_: tensor),
    ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "set"): set,
    ("dnnlib.util", "EasyDict"): dict,
    ("torch.nn.modules.container", "ModuleDict"): Recorded,
    ("torch.nn.modules.container", "ModuleList"): Recorded,
    ("torch.nn.modules.container", "Sequential"): Recorded,
    **{
        (f"numpy.{core}.{module}", name): StandIn(lambda *_: Ignored())
        for core in ("core", "_core")
        for module, name in (("multiarray", "scalar"), ("multiarray", "_reconstruct"), ("numeric", "_frombuffer"))
    },
    ("numpy", "dtype"): StandIn(lambda *_: Ignored()),
    ("numpy", "ndarray"): Ignored,
}


class _Reader(pickle._Unpickler):  # in Python: the one in C lets a file of a few bytes ask for a table of gigabytes
    def __init__(self, file: IO[bytes], known: Mapping[tuple[str, str], Any], encoding: str) -> None:
        super().__init__(file, encoding=encoding)
        self.known = known

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.known:
            raise UnknownNameError(f"{module}.{name}"[:80])
        return self.known[module, name]


class UnknownNameError(Exception):
    """A class or function that is not read."""


def unpickled(file: IO[bytes], known: Mapping[tuple[str, str], Any], encoding: str = "ASCII") -> Any:
    """What a pickle holds that names nothing but `known`, with the stand-ins in place of what it names.

    encoding: of what Python 2 wrote as `str`; "bytes" leaves it as it is. UnknownNameError where it names anything else, and any
    other error where it is damaged.
    """
    return _Reader(file, known, encoding).load()


def read_pickle(path: Path) -> Any:
    """What the pickle at `path` holds: plain data, tensors on the CPU, and modules as `Recorded`.

    ValueError, in one line, where it names anything that is not known, or is damaged.
    """
    try:
        with path.open("rb") as file:
            return unpickled(file, KNOWN)
    except UnknownNameError as error:
        raise ValueError(f"{path} holds {error}, which only running code could read: save its state_dict alone") from None
    except Exception as error:  # a hostile file can raise anything from within
        reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise ValueError(f"{path} is damaged, cut short, or no pickle of a network ({reason})") from None
