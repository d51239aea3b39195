"""EDM's pickles: modules of persistent classes, whose source code stands beside their state.

They name functions and classes of `torch_utils.persistence` and `dnnlib.util`, which need not be installed to write one.
"""

from __future__ import annotations

import pickle
import sys
import types
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

VERSION = 6  # of the pickles' format


def pickled(
    tensors: Mapping[str, Tensor],
    *,
    class_name: str = "EDMPrecond",
    architecture: str = "SongUNet",
    sigma_data: float = 0.5,
    source: str = "raise RuntimeError",
    protocol: int = 4,
) -> bytes:
    """A snapshot of a network with these tensors; `source` is what its own unpickler would run."""
    persistence, util = types.ModuleType("torch_utils.persistence"), types.ModuleType("dnnlib.util")
    util.EasyDict = type("EasyDict", (dict,), {"__module__": "dnnlib.util"})  # type: ignore[attr-defined]

    def _reconstruct_persistent_obj(meta: Any) -> None:
        raise AssertionError("only its name is written")

    _reconstruct_persistent_obj.__module__ = "torch_utils.persistence"
    _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    persistence._reconstruct_persistent_obj = _reconstruct_persistent_obj  # type: ignore[attr-defined]
    names = {"torch_utils": types.ModuleType("torch_utils"), "torch_utils.persistence": persistence}
    names |= {"dnnlib": types.ModuleType("dnnlib"), "dnnlib.util": util}

    def persistent(class_name: str, state: dict[str, Any]) -> _Persistent:
        state["_init_kwargs"] = util.EasyDict(img_resolution=8)
        meta = {"type": "class", "version": VERSION, "module_src": source, "class_name": class_name, "state": state}
        return _Persistent(_reconstruct_persistent_obj, meta)

    network = _module(_tree(tensors), "", persistent, {"": class_name, "model": architecture})
    network.meta["state"]["sigma_data"] = sigma_data
    loss = persistent("EDMLoss", {"P_mean": -1.2, "sigma_data": sigma_data})
    pipe = persistent("AugmentPipe", {"p": 0.12, "_modules": OrderedDict(), "constants": np.arange(3.0)})
    data = {"ema": network, "loss_fn": loss, "augment_pipe": pipe, "dataset_kwargs": {"path": "cifar10-32x32.zip"}}
    with mock.patch.dict(sys.modules, names):
        return pickle.dumps(data, protocol=protocol)


class _Persistent:
    """Pickled as a call of `_reconstruct_persistent_obj`."""

    def __init__(self, function: Any, meta: dict[str, Any]) -> None:
        self.function, self.meta = function, meta

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, (self.meta,), None


def _tree(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Names with dots as dictionaries within dictionaries."""
    root: dict[str, Any] = {}
    for name, tensor in tensors.items():
        *parents, last = name.split(".")
        inner = root
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[last] = tensor
    return root


def _module(tree: dict[str, Any], name: str, persistent: Any, classes: Mapping[str, str]) -> Any:
    """A module of `tree`: a dictionary of modules is PyTorch's own class, everything else a persistent one."""
    inner = {key: part for key, part in tree.items() if isinstance(part, dict)}
    modules = OrderedDict((key, _module(part, f"{name}.{key}".lstrip("."), persistent, classes)) for key, part in inner.items())
    if name in ("model.enc", "model.dec"):
        held = torch.nn.ModuleDict()
        held.__dict__["_modules"] = modules
        return held
    own = {key: part for key, part in tree.items() if key not in inner}
    buffers = OrderedDict((key, part) for key, part in own.items() if key == "resample_filter")
    parameters = OrderedDict(
        (key, torch.nn.Parameter(part, requires_grad=False)) for key, part in own.items() if key not in buffers
    )
    state = {
        "training": False,
        "_parameters": parameters,
        "_buffers": OrderedDict(resample_filter=None) if "weight" in own and not buffers else buffers,
        "_non_persistent_buffers_set": set(),
        "_backward_hooks": OrderedDict(),
        "_modules": modules,
        "skip_scale": np.sqrt(0.5),
    }
    return persistent(classes.get(name, "UNetBlock"), state)
