"""Saving networks that stand in a module more than once, as those of a purifier and its sibling do: weights are written once.

PyTorch writes a shared weight under each of its names, which safetensors, and so Hugging Face's Trainer, refuses ("tensors share
memory"). Within one `state_dict()` a network writes its weights where it is met first. Within one `load_state_dict()` it takes
them from wherever they stand, as often as they do; where they stand nowhere, they are reported as missing.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

# network -> the list of missing keys of the last `load_state_dict()`, which tells it from others, and the names it has had in it
_loading: WeakKeyDictionary[nn.Module, tuple[list[str], set[str]]] = WeakKeyDictionary()


def write_once(*networks: nn.Module | None) -> None:
    """Have networks write their weights once in every state dict, and accept to find them once; their copies do so, too."""
    for network in networks:
        if network is not None and _left_out not in network._state_dict_hooks.values():
            network.register_state_dict_post_hook(_left_out)
            network.register_load_state_dict_pre_hook(_filled_in)


def _left_out(network: nn.Module, state: dict[str, Any], prefix: str, local_metadata: Any) -> None:
    """Take the weights out again that are in `state` already, by names that end in the same way."""
    own = [name for name in state if name.startswith(prefix)]
    first = next(iter(own), None)
    if first is None:
        return
    ending = first.removeprefix(prefix)
    for other in [name.removesuffix(ending) for name in state if name.endswith(ending) and name != first]:
        if all(_is_same(state.get(other + name.removeprefix(prefix)), state[name]) for name in own):
            for name in own:
                del state[name]
            return


def _is_same(one: object, other: object) -> bool:
    """Whether two entries are one tensor in memory; without memory, as on "meta", only the same object is."""
    if one is other:
        return True
    if not (isinstance(one, Tensor) and isinstance(other, Tensor)) or one.device.type == "meta":
        return False
    alike = (type(one), one.dtype, one.shape, one.stride()) == (type(other), other.dtype, other.shape, other.stride())
    return alike and (one.numel() == 0 or one.data_ptr() == other.data_ptr() != 0)


def _filled_in(
    network: nn.Module,
    state: dict[str, Any],
    prefix: str,
    local_metadata: Any,
    strict: bool,
    missing_keys: list[str],
    unexpected_keys: list[str],
    error_messages: list[str],
) -> None:
    """Met again in one call, a network has what it was given before; what it is given now was not missing before."""
    own = network.state_dict(keep_vars=True)
    call, names = _loading.get(network, (None, set[str]()))
    if call is not missing_keys:
        _loading[network] = missing_keys, {prefix + name for name in own}
        return
    if all(prefix + name in state for name in own):
        missing_keys[:] = [name for name in missing_keys if name not in names]
    for name, tensor in own.items():
        state.setdefault(prefix + name, tensor)
    names.update(prefix + name for name in own)
