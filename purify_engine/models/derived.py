"""When what was computed from parameters is out of date: embedding tables, folded normalisations, captured graphs.

A parameter is known by (data_ptr, version, device, dtype). An optimizer step, `load_state_dict` or `.to` changes that; only
writing into `parameter.data` goes unseen, by PyTorch's version counter and so by us.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn


class Stamp:
    """The state of some tensors at one moment. It keeps their memory alive: no address in it can come to mean another weight."""

    def __init__(self, tensors: Iterable[Tensor] = ()) -> None:
        tensors = list(tensors)
        self._key = _key_of(tensors)
        self._alive = [tensor.detach() for tensor in tensors]

    def still_of(self, tensors: Iterable[Tensor]) -> bool:
        """Whether they are what they were."""
        return self._key == _key_of(tensors)


def is_frozen(tensors: Iterable[Tensor]) -> bool:
    """Whether something may be derived from them and kept: no gradient is wanted, and every change is counted."""
    return not any(tensor.requires_grad or tensor.is_inference() for tensor in tensors)


def _key_of(tensors: Iterable[Tensor]) -> tuple[object, ...]:
    return tuple((t.data_ptr(), 0 if t.is_inference() else t._version, t.device, t.dtype) for t in tensors)


class Watched:
    """The parameters and buffers of some modules, walked quickly: submodules are listed once and again where one was replaced."""

    def __init__(self, *roots: nn.Module) -> None:
        self.roots = roots
        self._modules: list[nn.Module] = []
        self._children: list[int] = []

    def tensors(self) -> list[Tensor]:
        """All of them, in a fixed order."""
        if not self._modules or self._children != self._identities():
            self._modules = [module for root in self.roots for module in root.modules()]
            self._children = self._identities()
        found = (t for m in self._modules for t in (*m._parameters.values(), *m._buffers.values()))
        return [tensor for tensor in found if tensor is not None]

    def _identities(self) -> list[int]:
        return [id(child) for module in self._modules for child in module._modules.values()]
