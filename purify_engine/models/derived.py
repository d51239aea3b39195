"""What is computed from parameters and kept: embedding tables, folded norms, captured graphs (ops/_packed.py says till when)."""

from __future__ import annotations

import operator

from torch import Tensor, nn

from purify_engine import ops


class Watched:
    """The parameters and buffers of some modules, walked quickly: submodules are listed once and again where one was replaced."""

    def __init__(self, *roots: nn.Module) -> None:
        self.roots = roots
        self._modules: list[nn.Module] = []
        self._children: list[int] = []

    def tensors(self) -> list[Tensor]:
        """All of them, in a fixed order."""
        found = (t for m in self.modules() for t in (*m._parameters.values(), *m._buffers.values()))
        return [tensor for tensor in found if tensor is not None]

    def modules(self) -> list[nn.Module]:
        """The modules and all their submodules, the roots first."""
        if not self._modules or self._children != self._identities():
            self._modules = [module for root in self.roots for module in root.modules()]
            self._children = self._identities()
        return self._modules

    def _identities(self) -> list[int]:
        return [id(child) for module in self._modules for child in module._modules.values()]


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
