"""What stands around the tensors in a training file: a dictionary of other things, and the prefix of torch's DataParallel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

PARALLEL = "module."  # DataParallel and DistributedDataParallel put it before every name
# Under which training files keep their tensors: averages first, for those are the weights that papers sample from.
AVERAGED = ("ema", "ema_state_dict", "model_ema", "ema_model", "state_dict_ema")
USUAL = (*AVERAGED, "state_dict", "model", "model_state_dict", "net", "network", "params", "module", "unet")


def bare(content: Any, deep: int = 3) -> dict[str, Tensor] | None:
    """The tensors of `content`, a dictionary of tensors or one that holds such a one under a usual name; `module.` is taken off.

    deep: dictionaries within one another, at most: a file's may hold itself. None where there is none.
    """
    for name in USUAL if isinstance(content, Mapping) and deep else ():
        if isinstance(content.get(name), Mapping) and (found := bare(content[name], deep - 1)) is not None:
            return found
    if not isinstance(content, Mapping) or not content:
        return None
    if not all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content.items()):
        return None
    prefix = PARALLEL if all(name.startswith(PARALLEL) for name in content) else ""
    return {name.removeprefix(prefix): tensor for name, tensor in content.items()}
