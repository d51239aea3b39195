"""Images at which a network of ReLUs may be differentiated in two precisions and compared: they keep all of them far from zero.

Of the millions in a large network some stand within an error of zero, and fall on either side. Each that does moves its image's
gradient by a thousand times a rounding, in honest arithmetic too, and hides what the gradient's own error is.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

AT_A_TIME = 8  # images


def smoothest(network: nn.Module, candidates: Tensor, number: int) -> Tensor:
    """Which `number` of the candidates [N, C, H, W] keep every ReLU of `network` farthest from zero, the best first."""
    return torch.cat([margins(network, few) for few in candidates.split(AT_A_TIME)]).nan_to_num(0).topk(number).indices


@torch.no_grad()
def margins(network: nn.Module, images: Tensor) -> Tensor:
    """How near an image [B, C, H, W] brings any ReLU to zero, in units of the root mean square of its layer: [B]."""
    least = torch.full((len(images),), torch.inf, dtype=images.dtype)

    def note(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        x = inputs[0].flatten(1)
        torch.minimum(least, x.abs().amin(1) / x.square().mean(1).sqrt(), out=least)

    hooks = [module.register_forward_hook(note) for module in network.modules() if isinstance(module, nn.ReLU)]
    try:
        network(images)
    finally:
        for hook in hooks:
            hook.remove()
    return least
