"""What is computed from parameters and kept: embedding tables, folded norms, captured graphs (ops/_packed.py says till when)."""

from __future__ import annotations

import operator
from itertools import chain

from torch import Tensor, nn

from purify_engine import ops

_CHILDREN = operator.attrgetter("_modules")


class Watched:
    """The parameters and buffers of some modules, walked quickly: submodules are listed once and again where one was replaced."""

    def __init__(self, *roots: nn.Module) -> None:
        self.roots = roots
        self._modules: list[nn.Module] = []
        self._children: list[nn.Module | None] = []

    def tensors(self) -> list[Tensor]:
        """All of them, in a fixed order."""
        found: list[Tensor | None] = []
        for module in self.modules():
            for held in (module._parameters, module._buffers):
                if held:  # most modules hold neither
                    found.extend(held.values())
        return [tensor for tensor in found if tensor is not None]

    def modules(self) -> list[nn.Module]:
        """The modules and all their submodules, the roots first."""
        if not self._modules or self._children != self._held():
            self._modules = [module for root in self.roots for module in root.modules()]
            self._children = self._held()
        return self._modules

    def _held(self) -> list[nn.Module | None]:
        return list(chain.from_iterable(held.values() for held in map(_CHILDREN, self._modules) if held))


class Networks:
    """Some networks, or what stands for one, and the state of their weights."""

    def __init__(self, *parts: object) -> None:
        self._parts = parts
        self._watched = Watched(*(part for part in parts if isinstance(part, nn.Module)))
        self._weights = ops.TensorVersions(self._watched.tensors())

    def are(self, *parts: object) -> bool:
        """Whether these are the very same, with the weights that they had."""
        same = len(self._parts) == len(parts) and all(map(operator.is_, self._parts, parts))
        return same and self._weights.still_of(self._watched.tensors())
