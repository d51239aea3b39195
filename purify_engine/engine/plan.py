"""A sampler is a function that writes a table: one row (a, b, d, c) a reverse step (docs/math.md E7, E8).

    x_j = a x_i + b eps_theta(x_i, t_i) + d grad G(x_i) + c z

Adding a sampler adds a function here, and no kernel, no loop, no graph. Tables are computed in float64. Two things are more than
a row, since they are not linear in eps: a learned variance (E26), where c is a factor of each pixel's own standard deviation, and
a clipped estimate of the clean image (E25).

One guidance scale is not portable. Mean-form pull is the score form's times sqrt(alpha') (1 - alpha_bar_j) / (1 - alpha_bar_i):
1 at large i, 0 on the last step. And the total push (the sum of d / s) differs by sampler: at t* = 70, .0551 for eta = 1 at
any stride, about .03 for eta = 0.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from purify_engine.config import ClipX0, Growth, GuidanceForm, PurifierConfig, Sampler, TimeLabels, one_of, require
from purify_engine.engine.timesteps import DIFFPURE_END, diffpure_labels, walk
from purify_engine.reference.philox import FORWARD_STEP
from purify_engine.reference.schedules import VPSDE, NoiseSchedule, make_schedule
from purify_engine.types import Marginal, Rows


@dataclass(frozen=True, eq=False)
class ReversePlan:
    """Everything about a purification that can be known before the first image. N reverse steps, first visited first."""

    sampler: str
    rows: Rows  # float64 [N, 4]: a, b, d, c
    times: Tensor  # float64 [N]: what the network is told at each step
    marginals: Tensor  # float64 [N, 2]: (sqrt(alpha_bar_i), sqrt(1 - alpha_bar_i)) of each step's input
    guided: bool  # whether any row has a guidance coefficient
    net_dtype: torch.dtype | None = None  # what the networks read; None: the images' own
    log_variances: Tensor | None = None  # float64 [N, 2]: what a learned variance lies between (docs/math.md E26)
    form: GuidanceForm = "score"  # how the pull enters: where the variance is learned, the mean form's grows with it
    clip_x0: ClipX0 = "never"  # whether the estimate of the clean image is clipped (E25)
    forward_step: Tensor = field(
        init=False
    )  # the noise counter of the forward process, an int64 scalar on the plan's device
    steps: tuple[Tensor, ...] = field(init=False)  # int64 scalars 0 … N - 1 on the plan's device

    def __post_init__(self) -> None:
        device = self.rows.device
        object.__setattr__(self, "forward_step", torch.full((), FORWARD_STEP, dtype=torch.int64, device=device))
        object.__setattr__(self, "steps", torch.arange(len(self.rows), device=device).unbind())

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        pull = "guided" if self.guided else "unguided"
        return f"ReversePlan({self.sampler}, {len(self)} steps from t = {self.times[0]:g}, {pull})"

    @property
    def learns_variance(self) -> bool:
        """Whether the network is asked for the variance of each pixel, beside the noise."""
        return self.log_variances is not None

    @property
    def corrections(self) -> tuple[object, ...]:
        """What a step does beside its row: a captured step does it with every plan."""
        return self.clip_x0, self.learns_variance and self.form

    @property
    def start(self) -> Marginal:
        """The marginal that the forward process noises to, float64 [2]."""
        return self.marginals[0]

    def marginal(self, step: Tensor) -> Marginal:
        """The marginal of one step's input, gathered on the device, float64 [2]."""
        return self.marginals.index_select(0, step).squeeze(0)

    @property
    def tables(self) -> dict[str, Tensor]:
        """What has an entry for each step, by the name of its field: the same names where `corrections` are the same."""
        named = {name: getattr(self, name) for name in ("rows", "times", "marginals", "log_variances")}
        return {name: table for name, table in named.items() if table is not None}

    def with_room(self, count: int) -> ReversePlan:
        """A plan of tables of its own, `count` steps long: the last one repeated."""

        def longer(table: Tensor) -> Tensor:
            return torch.cat([table, table[-1:].expand(count - len(table), *table.shape[1:])]).clone()

        return self._with_tables(longer)

    def load(self, plan: ReversePlan) -> None:
        """Overwrite the first entries of these tables by those of a plan of the same corrections, and no more steps."""
        own = self.tables
        for name, table in plan.tables.items():
            own[name][: len(table)].copy_(table)

    def to(self, device: torch.device | str, net_dtype: torch.dtype | None = None) -> ReversePlan:
        """The same plan on another device, for networks of another dtype. The tables stay float64."""
        return self._with_tables(lambda table: table.to(device), net_dtype=net_dtype)

    def _with_tables(self, change: Callable[[Tensor], Tensor], **others: Any) -> ReversePlan:
        changed: dict[str, Any] = {name: change(table) for name, table in self.tables.items()}
        return dataclasses.replace(self, **changed, **others)


class Interval(NamedTuple):
    """One step from index i to index j, scalars or [N]; j = -1 is the clean image, alpha_bar = 1."""

    alpha_bar: Tensor  # at i, float64
    alpha_bar_next: Tensor  # at j
    i: Tensor  # int64, as j
    j: Tensor

    @property
    def alpha(self) -> Tensor:
        """alpha' = alpha_bar_i / alpha_bar_j: how much signal the interval drowns."""
        return self.alpha_bar / self.alpha_bar_next

    @property
    def sigma(self) -> Tensor:
        return (1 - self.alpha_bar).sqrt()

    def posterior_std(self, eta: float) -> Tensor:
        """c1 = eta sqrt((1 - alpha') (1 - alpha_bar_j) / (1 - alpha_bar_i)); 0 on the last step."""
        return eta * ((1 - self.alpha) * (1 - self.alpha_bar_next) / (1 - self.alpha_bar)).sqrt()


Columns = tuple[Tensor, Tensor, Tensor, Tensor]


def ddpm(step: Interval, form: GuidanceForm, *, large: bool = False, last_noise: bool = False) -> Columns:
    """Ancestral sampling: Ho et al. 2020, algorithm 2, at stride 1; Nichol & Dhariwal 2021, section 4, at any other.

    The variance is the posterior's (fixed-small) or the interval's own (`large`: fixed-large). The last step draws no noise; with
    `last_noise` a large one does from above index 0, as diffusers.
    """
    a = step.alpha.rsqrt()
    b = -(1 - step.alpha) / (step.alpha.sqrt() * step.sigma)
    small = step.posterior_std(1.0)
    spread = (1 - step.alpha).sqrt() if large else small
    d = (1 - step.alpha) * a if form == "score" else spread.square()
    noisy = (step.alpha_bar_next < 1) | ((step.i > 0) & last_noise)
    return a, b, d, torch.where(noisy, spread, 0.0)


def ddpm_learned(step: Interval, form: GuidanceForm) -> Columns:
    """`ddpm` whose variance the network puts out (Nichol & Dhariwal 2021, equation 15): c, and d in the mean form, are
    multiples of each pixel's standard deviation and variance."""
    a, b, d, c = ddpm(step, form)
    return a, b, d if form == "score" else torch.ones_like(d), (c > 0).to(c.dtype)


def log_variances(step: Interval) -> Tensor:
    """Logarithms of the posterior's variance and of the interval's own, [N, 2]: a learned variance lies between them (E26).

    The posterior's is 0 on the last step, and that of the step before stands there, as in the published code; the interval's
    own where there is no other step.
    """
    large, small = 1 - step.alpha, step.posterior_std(1.0).square()
    before = torch.cat([large[:1], small[:-1]])
    return torch.stack([torch.where(step.alpha_bar_next < 1, small, before), large], dim=1).log()


def ddim(step: Interval, form: GuidanceForm, *, eta: float = 0.0) -> Columns:
    """Song et al. 2021 (DDIM), equation 12: eta = 0 is deterministic, eta = 1 is `ddpm`."""
    require(
        form == "score" or eta > 0, "form", "'score' where eta is 0, since the mean form scales with the variance", form
    )
    spread = step.posterior_std(eta)
    a = step.alpha.rsqrt()
    b = (1 - step.alpha_bar_next - spread.square()).clamp(min=0).sqrt() - a * step.sigma
    d = -b * step.sigma if form == "score" else spread.square()
    return a, b, d, spread


def vp_sde(step: Interval, form: GuidanceForm, *, sde: VPSDE | None) -> Columns:
    """Euler-Maruyama on the reverse VP-SDE as DiffPure (Nie et al. 2022) runs it; Song et al. 2021, equation 6.

    Index i is t = (i + 1)/T, beta and sigma are those of continuous time, the last step ends at t = 1e-5 and draws noise, too.
    Score form and mean form are the same here. It converges to the reverse SDE, not to DDPM.
    """
    if sde is None:
        raise ValueError("sampler must be other than 'vp_sde' for a schedule without an SDE (all but linear), got 'vp_sde'")
    t, h = sde.time(step.i), (step.i - step.j).double() / sde.num_timesteps
    h = torch.where(step.j < 0, h - DIFFPURE_END, h)
    require(bool((h > 0).all()), "num_steps", f"so few that the last step is longer than {DIFFPURE_END:g} in t", len(h))
    drift = sde.beta(t) * h
    return 1 + drift / 2, -drift / sde.sigma(t), drift, drift.sqrt()


def sampler_columns(
    sampler: Sampler, eta: float = 0.0, *, sde: VPSDE | None = None, last_noise: bool = False
) -> Callable[[Interval, GuidanceForm], Columns]:
    """The function that writes the columns (a, b, d / s, c) of a named sampler.

    sde: for vp_sde. last_noise: for ddpm_large.
    """
    writers: dict[Sampler, Callable[[Interval, GuidanceForm], Columns]] = {
        "ddpm": ddpm,
        "ddpm_large": partial(ddpm, large=True, last_noise=last_noise),
        "ddpm_learned": ddpm_learned,
        "ddim": partial(ddim, eta=eta),
        "vp_sde": partial(vp_sde, sde=sde),
    }
    return writers[sampler]


def write_plan(
    schedule: NoiseSchedule,
    t_star: int,
    num_steps: int | None = None,
    sampler: Sampler = "ddpm",
    *,
    timesteps: Sequence[int] | None = None,
    landings: Sequence[int] | None = None,
    time_labels: TimeLabels = "index",
    eta: float = 0.0,
    last_noise: bool = False,
    form: GuidanceForm = "score",
    guidance_scale: float | Sequence[float] = 0.0,
    growth: Growth = "constant",
    clip_x0: ClipX0 = "never",
) -> ReversePlan:
    """The table of a purification: `t_star` noising steps undone in `num_steps` (every one of them by default).

    t_star: in [1, T]; the first index visited is t_star - 1. num_steps: in [1, t_star], evenly spread. timesteps, landings: the
    indices visited and where each step lands, as in `PurifierConfig`; with them `num_steps` takes so many of these.
    guidance_scale: s, one number or one a step; see the module's note on portability. growth: "noise" multiplies each step's by
    sigma / sqrt(alpha_bar). Raises ValueError naming the argument.
    """
    require(1 <= t_star <= schedule.num_timesteps, "t_star", f"in [1, {schedule.num_timesteps}]", t_star)
    one_of("sampler", sampler, Sampler)
    one_of("time_labels", time_labels, TimeLabels)
    device = schedule.betas.device
    here, there = (index.to(device) for index in walk(t_star, num_steps, timesteps, landings))
    scale = torch.as_tensor(guidance_scale, dtype=torch.float64, device=device)
    require(scale.numel() in (1, len(here)), "guidance_scale", f"1 or {len(here)} numbers", guidance_scale)

    clean = torch.ones(1, dtype=torch.float64, device=device)
    alpha_bar = torch.cat([clean, schedule.alphas_cumprod])  # index i lives at i + 1
    interval = Interval(alpha_bar[here + 1], alpha_bar[there + 1], here, there)
    if growth == "noise":
        scale = scale * interval.sigma / interval.alpha_bar.sqrt()
    a, b, d, c = sampler_columns(sampler, eta, sde=schedule.sde, last_noise=last_noise)(interval, form)
    told = schedule.times if time_labels == "index" else diffpure_labels(t_star, schedule.num_timesteps).to(device)
    return ReversePlan(
        sampler=sampler,
        rows=torch.stack([a, b, d * scale, c], dim=1),
        times=told[here],
        marginals=torch.stack([interval.alpha_bar.sqrt(), interval.sigma], dim=1),
        guided=bool((scale != 0).any()),
        log_variances=log_variances(interval) if sampler == "ddpm_learned" else None,
        form=form,
        clip_x0=clip_x0,
    )


def make_plan(config: PurifierConfig, num_steps: int | None = None, cycle: int = 0) -> ReversePlan:
    """The plan that a configuration names for one of its cycles, or the same in at most `num_steps` steps."""
    t_star = config.depths[cycle]
    most = t_star if config.timesteps is None else len(config.timesteps)
    return write_plan(
        make_schedule(config.schedule),
        t_star,
        config.num_steps if num_steps is None else min(num_steps, most),
        config.sampler,
        timesteps=config.timesteps,
        landings=config.landings,
        time_labels=config.time_labels,
        eta=config.eta,
        last_noise=config.last_noise,
        form=config.guidance.form,
        guidance_scale=config.guidance.scale if config.guidance.kind != "none" else 0.0,
        growth=config.guidance.growth,
        clip_x0=config.clip_x0,
    )
