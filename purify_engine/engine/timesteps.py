"""Which timesteps a reverse process visits and where each step lands, by index; and what a network may be told of them.

Index i in [0, T); -1 is the clean image. What other samplers visit is in config/timesteps.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from purify_engine.config import check_timesteps, require

DIFFPURE_END = 1e-5  # t at which DiffPure's reverse SDE ends


def visited(t_star: int, num_steps: int) -> Tensor:
    """How many noising steps remain at each stop, from `t_star` down to 0, int64 [num_steps + 1], evenly spread."""
    return torch.linspace(t_star, 0, num_steps + 1, dtype=torch.float64, device="cpu").round().long()


def walk(
    t_star: int,
    num_steps: int | None = None,
    timesteps: Sequence[int] | None = None,
    landings: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """(from, to): the index that every step starts at, and where it lands, int64 [N] each.

    timesteps, landings: as in `PurifierConfig`; None: `num_steps` evenly spread over t_star. With both `timesteps` and a smaller
    `num_steps`, so many of them: neighbouring steps become one, from where the first starts to where the last lands. Raises
    ValueError naming the argument.
    """
    count = t_star if timesteps is None else len(timesteps)
    num_steps = count if num_steps is None else num_steps
    allowed = f"in [1, t_star={t_star}]" if timesteps is None else f"in [1, {count}], as many as timesteps"
    require(1 <= num_steps <= count, "num_steps", allowed, num_steps)
    if timesteps is None:
        stops = visited(t_star, num_steps) - 1
        return stops[:-1], stops[1:]
    check_timesteps(timesteps, landings, t_star)
    starts = torch.tensor(timesteps, dtype=torch.int64, device="cpu")
    ends = torch.tensor((*timesteps[1:], -1) if landings is None else landings, dtype=torch.int64, device="cpu")
    cuts = count - visited(count, num_steps)
    return starts[cuts[:-1]], ends[cuts[1:] - 1]


def diffpure_labels(t_star: int, num_timesteps: int = 1000) -> Tensor:
    """What DiffPure tells guided-diffusion's networks at index 0 … t_star - 1: int(T t), float64 [t_star].

    torchsde adds 1 - t up in float32, in steps of 1/T from 1 - t_star/T; DiffPure cuts T t off to an integer. So the label is
    i + 1, and i where that sum came out above: at t_star = 150 in the first two steps, at 100, 125 and 500 never.
    """
    step = 1 / num_timesteps
    now, labels = torch.tensor(1 - t_star / num_timesteps, dtype=torch.float32, device="cpu"), []
    for _ in range(t_star):
        labels.append(((1 - now) * num_timesteps).long())
        now = now + step
    return torch.stack(labels).flip(0).double()
