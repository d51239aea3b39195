"""The timesteps that other samplers visit, as tuples for `PurifierConfig.timesteps`: integers, falling, below the T of training.

A purifier starts inside such a list: keep its timesteps below t_star, and give t_star as the first of them plus 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from purify_engine.config.checks import one_of, require

Spacing = Literal["leading", "linspace", "trailing"]


def spaced_timesteps(
    num_steps: int, spacing: Spacing = "leading", *, steps_offset: int = 0, num_timesteps: int = 1000
) -> tuple[int, ...]:
    """`num_steps` timesteps as diffusers' schedulers space them (Lin et al. 2023, arXiv 2305.08891, table 2).

    leading: multiples of T // num_steps from 0, plus `steps_offset`, which leading alone reads. linspace: from T - 1 down to 0,
    evenly. trailing: T - 1 and down by T / num_steps; for some counts, such as 61, diffusers adds a -1, which is left out.
    num_steps: in [1, num_timesteps]. Raises ValueError naming the argument.
    """
    one_of("spacing", spacing, Spacing)
    require(1 <= num_steps <= num_timesteps, "num_steps", f"in [1, num_timesteps={num_timesteps}]", num_steps)
    if spacing == "leading":
        rising = [k * (num_timesteps // num_steps) + steps_offset for k in range(num_steps)]
        allowed = f"in [0, {num_timesteps - 1 - rising[-1] + steps_offset}] for this num_steps"
        require(steps_offset >= 0 and rising[-1] < num_timesteps, "steps_offset", allowed, steps_offset)
    elif spacing == "linspace":
        rising = [round(k * ((num_timesteps - 1) / max(num_steps - 1, 1))) for k in range(num_steps)]
    else:
        stride = num_timesteps - (num_timesteps - num_timesteps / num_steps)  # as numpy.arange rounds it
        rising = [round(num_timesteps - k * stride) - 1 for k in reversed(range(num_steps))]
    return tuple(reversed(rising))


def ddim_landings(
    timesteps: Sequence[int], num_steps: int, *, num_timesteps: int = 1000, set_alpha_to_one: bool = True
) -> tuple[int, ...]:
    """Where diffusers' DDIM lands from each of `timesteps`, for `PurifierConfig.landings`: T // num_steps below it.

    num_steps: that of the whole list, also where `timesteps` is its end. Below 0 is the clean image (-1), or timestep 0 where the
    scheduler has set_alpha_to_one=False.
    """
    last = -1 if set_alpha_to_one else 0
    return tuple(last if (j := t - num_timesteps // num_steps) < 0 else j for t in timesteps)


def respaced_timesteps(sections: str | Sequence[int], num_timesteps: int = 1000) -> tuple[int, ...]:
    """The timesteps that guided-diffusion keeps for `timestep_respacing` (Nichol & Dhariwal 2021, section 4).

    sections: "250", "10,20,30" or such numbers: so many of each of that many equal parts, first and last of each among them;
    "ddim250": every k-th from 0, where some k gives so many. Raises ValueError where that cannot be done.
    """
    if isinstance(sections, str) and sections.startswith("ddim"):
        wanted = int(sections.removeprefix("ddim"))
        for k in range(1, num_timesteps):
            if len(range(0, num_timesteps, k)) == wanted:
                return tuple(reversed(range(0, num_timesteps, k)))
        require(False, "sections", f"ddim and a number of steps that every k-th of {num_timesteps} timesteps makes", sections)
    counts = [int(count) for count in sections.split(",")] if isinstance(sections, str) else list(sections)
    kept: set[int] = set()
    start = 0
    for part, count in enumerate(counts):
        size = num_timesteps // len(counts) + (part < num_timesteps % len(counts))
        require(1 <= count <= size, "sections", f"in [1, {size}] for part {part} of {num_timesteps} timesteps", count)
        stride, at = (size - 1) / (count - 1) if count > 1 else 1.0, 0.0
        for _ in range(count):
            kept.add(start + round(at))
            at += stride  # added up, as there: a product may round to another timestep
        start += size
    return tuple(sorted(kept, reverse=True))


def check_timesteps(timesteps: Sequence[int], landings: Sequence[int] | None, t_star: int) -> None:
    """ValueError by name unless `timesteps` fall strictly from t_star - 1, and every landing lies below where its step starts."""
    falling = bool(timesteps) and all(0 <= j < i for i, j in zip(timesteps, timesteps[1:], strict=False))
    first = f"integers falling strictly from t_star - 1 = {t_star - 1}"
    require(falling and timesteps[0] == t_star - 1, "timesteps", first, tuple(timesteps))
    if landings is not None:
        require(len(landings) == len(timesteps), "landings", f"{len(timesteps)} numbers, one a timestep", tuple(landings))
        below = all(-1 <= j < i for i, j in zip(timesteps, landings, strict=True))
        require(below, "landings", "in [-1, timestep) for each timestep", tuple(landings))
