"""What is computed from parameters and kept: embedding tables, folded norms, captured graphs (ops/_packed.py says till when)."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from contextlib import nullcontext
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from purify_engine import ops

_CHILDREN = operator.attrgetter("_modules")
_HOOKS = operator.attrgetter("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_RECORDED_HOOKS = ("torch.nn.utils.", "purify_engine.")  # pruning, weight_norm and ours: functions of tensors alone
_BUILDERS = ("torch.nn.modules.", "purify_engine.")  # whose classes are known to be what they are called


class Watched:
    """The parameters and buffers of some modules, walked quickly: submodules are listed once and again where one was replaced."""

    def __init__(self, *roots: nn.Module) -> None:
        self.roots = roots
        self.listed: list[nn.Module] = []  # as last walked: another list where a submodule was replaced
        self._children: list[nn.Module | None] = []
        self._held: list[dict[str, Any]] = []  # what holds their submodules, their tensors, and their hooks: the dicts themselves
        self._tensors: list[Mapping[str, Tensor | None]] = []
        self._hooks: list[dict[int, Any]] = []
        self._of_known_classes = True

    def tensors(self) -> list[Tensor]:
        """All of them, in a fixed order; those of a replica of nn.DataParallel, too."""
        self.modules()
        return [tensor for held in filter(None, self._tensors) for tensor in held.values() if tensor is not None]

    def modules(self) -> list[nn.Module]:
        """The modules and all their submodules, the roots first."""
        if (self.roots and not self.listed) or self._children != self._submodules():
            self._list()
        return self.listed

    def _list(self) -> None:
        self.listed = [module for root in self.roots for module in root.modules()]
        self._held = list(map(_CHILDREN, self.listed))
        self._children = self._submodules()
        self._tensors = [held for module in self.listed for held in (module._parameters, module._buffers)]
        self._tensors += [module.__dict__.get("_former_parameters", {}) for module in self.listed]
        self._hooks = list(chain.from_iterable(map(_HOOKS, self.listed)))
        self._of_known_classes = all(type(module).__module__.startswith(_BUILDERS) for module in self.listed)

    def _submodules(self) -> list[nn.Module | None]:
        return [child for held in filter(None, self._held) for child in held.values()]

    def is_as_built(self) -> bool:
        """Whether all modules are of PyTorch's classes and ours, and no hook waits for one: so that others may stand for them."""
        self.modules()
        return self._of_known_classes and not any(self._hooks)

    def hooked(self) -> nn.Module | None:
        """The first module with a hook that a replay would not run; hooks that compute with tensors alone are recorded."""
        modules = self.modules()
        if not any(self._hooks):  # as nearly always
            return None
        for module in modules:
            for hooks in _HOOKS(module):
                if hooks and any(not str(getattr(hook, "__module__", "")).startswith(_RECORDED_HOOKS) for hook in hooks.values()):
                    return module
        return None


class State:
    """The modules and the weights of what is watched, at one moment."""

    def __init__(self, watched: Watched) -> None:
        self._weights = ops.TensorVersions(watched.tensors())
        self._modules = watched.listed

    def still_of(self, watched: Watched, tensors: list[Tensor]) -> bool:
        """Whether they are the same modules, with the weights that they had; `tensors` is what was just watched."""
        return self._modules is watched.listed and self._weights.still_of(tensors)


class Networks:
    """Some networks, or what stands for one, and the state that they were in."""

    def __init__(self, *parts: object) -> None:
        self._parts = parts
        self._watched = Watched(*(part for part in parts if isinstance(part, nn.Module)))
        self._state = State(self._watched)

    def are(self, *parts: object) -> bool:
        """Whether these are the very same, of the same layers, with the weights that they had."""
        same = len(self._parts) == len(parts) and all(map(operator.is_, self._parts, parts))
        return same and self._state.still_of(self._watched, self._watched.tensors())


class Probe:
    """Notices what was written into a network's weights past PyTorch's version counters. Copies and pickles start empty."""

    def __init__(self, network: nn.Module | None = None) -> None:
        self.network = network
        self._watched = Watched(*([] if network is None else [network]))
        self._state: State | None = None  # of which this is a sample
        self._sample = ops.TensorSample([])

    def __reduce__(self) -> tuple[type[Probe], tuple[()]]:
        return Probe, ()

    def look(self) -> list[bool | Tensor] | None:
        """`ops.TensorSample.differs`; None at first and where changes were counted, so that there is nothing to compare with."""
        tensors = self._watched.tensors()
        if self._state is not None and self._state.still_of(self._watched, tensors):
            return self._sample.differs()
        self._take(tensors)
        return None

    def tell(self) -> None:
        """Have everything made anew that was derived from these weights."""
        tensors = self._watched.tensors()
        ops.count_writes(tensors)
        self._take(tensors)

    def _take(self, tensors: list[Tensor]) -> None:
        self._state, self._sample = State(self._watched), ops.TensorSample(tensors)


def notice_writes(*networks: nn.Module | None) -> bool:
    """Look for writes to weights that PyTorch does not count, and have what was derived from those networks made anew.

    Such are `parameter.data.copy_(...)` and NumPy's. Once a call, before anything derived is used: it compares a run of elements
    of every tensor, by `ops.TensorSample`, which says what it cannot see. All purifiers of a network share
    its probe. Returns whether some weights are others than at the last call, noticed by whatever means.
    """
    if ops.is_transformed() and any(map(_stands_for_others, networks)):
        return False
    with _disable_current_modes() if ops.is_observed() else nullcontext():
        probes = [_probe_of(network) for network in networks if network is not None]
        found = [probe.look() for probe in probes]  # all is launched before any is read
        written = [probe for probe, differing in zip(probes, found, strict=True) if differing and any(differing)]
        for probe in written:
            probe.tell()
        return bool(written) or None in found


def _stands_for_others(network: nn.Module | None) -> bool:
    """Whether a network is traced, or a transform's tensors are its weights, which have no memory to look at."""
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor
    return network is not None and (torch.jit.is_tracing() or any(map(wrapped, Watched(network).tensors())))


def _probe_of(network: nn.Module) -> Probe:
    probe = getattr(network, "weights_probe", None)
    if not isinstance(probe, Probe) or probe.network is not network:
        probe = Probe(network)
        network.weights_probe = probe  # type: ignore[assignment]
    return probe
