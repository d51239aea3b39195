"""A whole purification in the model's space: its cycles by the loop or by replay, and what siblings share to run it fast."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Hashable
from typing import Any, Literal, NamedTuple, TypeVar
from weakref import WeakKeyDictionary, WeakValueDictionary

import torch
from torch import nn

from purify_engine import devices, ops
from purify_engine.config import PurifierConfig
from purify_engine.engine.capture import CaptureError
from purify_engine.engine.cpu_capture import LARGE, MOST_VALUES
from purify_engine.engine.gradients import purify
from purify_engine.engine.guide import Guide, make_guide
from purify_engine.engine.loop import Loop
from purify_engine.engine.masking import warn_of_masking
from purify_engine.engine.plan import ReversePlan, make_plan
from purify_engine.engine.process import Executor, OnStepEnd, ReverseProcess
from purify_engine.engine.replay import AUTOCAST, GRAPHS_ON, Replay
from purify_engine.engine.trace_functions import TRACED, is_python_traced
from purify_engine.models.derived import Watched
from purify_engine.models.own import AnyDenoiser, AnyGuide
from purify_engine.ops import autocast
from purify_engine.reference.philox import derive_seed
from purify_engine.types import Images, NoiseKey

Execution = Literal["auto", "loop", "graph"]
Kept = TypeVar("Kept")

CYCLES = 2**33  # the first seed stream of the cycles within one draw
MOST_PLANS, MOST_GUIDES = 64, 4  # that are kept beyond their use, the last ones: a guide's recordings hold memory
REPLICA = "a replica of nn.DataParallel lives for one call, and so would what it records"
# Settings that no plan depends on, at one value each: siblings that differ in them alone share their plans.
NOT_OF_A_PLAN: dict[str, Any] = {
    field.name: field.default
    for field in dataclasses.fields(PurifierConfig)
    if field.name
    in {"seed", "noise", "gradient", "surrogate_steps", "clamp", "clip_input", "image_range", "sizes", "tile_stride"}
}


class Guided:
    """A guide, and the replay of what was captured with it."""

    def __init__(self, guide: Guide) -> None:
        self.guide, self.replay = guide, Replay()
        self._watched = Watched()

    def hooked(self, denoiser: nn.Module) -> str | None:
        """The name of a layer with a hook that a replay would not run, None where there is none."""
        roots = (denoiser, self.guide) if isinstance(self.guide, nn.Module) else (denoiser,)
        watched = self._watched
        if watched.roots != roots:
            watched = self._watched = Watched(*roots)
        layer = watched.hooked()
        names = (name for root in roots for name, module in root.named_modules() if module is layer)
        return None if layer is None else next(names) or type(layer).__name__


class Shared:
    """Plans, and guides with what was captured: what a purifier and its siblings share. Copies and pickles start empty.

    A guide is kept while a purifier that last used it lives, and the last few beyond that.
    """

    def __init__(self) -> None:
        self._plans: dict[Hashable, ReversePlan] = {}
        self._plans_of_configs: dict[Hashable, ReversePlan] = {}  # the same, found without leaving out what does not matter
        self._guides: WeakValueDictionary[Hashable, Guided] = WeakValueDictionary()
        self._last_guides: dict[Hashable, Guided] = {}
        self._in_use: WeakKeyDictionary[nn.Module, Guided] = WeakKeyDictionary()
        self._turn = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return Shared, ()

    def of_replica(self) -> Shared:
        """What a replica of nn.DataParallel shares: the plans. Guides hold networks, and its own are gone after the call."""
        shared = Shared()
        shared._plans, shared._plans_of_configs, shared._turn = self._plans, self._plans_of_configs, self._turn
        return shared

    def plan(self, config: PurifierConfig, num_steps: int | None, cycle: int, where: Placement) -> ReversePlan:
        """The plan of one cycle, at the place of the networks."""
        depth = config.depths[cycle]

        def made() -> ReversePlan:
            devices.require_float64(where.device)
            return make_plan(config, num_steps, cycle).to(where.device, where.net_dtype)

        def found() -> ReversePlan:
            decisive = dataclasses.replace(config, **NOT_OF_A_PLAN)
            return _kept(self._plans, (decisive, num_steps, depth, where), made, MOST_PLANS)

        with self._turn:
            return _kept(self._plans_of_configs, (config, num_steps, depth, where), found, MOST_PLANS)

    def guided(self, user: nn.Module, network: AnyGuide | None, config: PurifierConfig) -> Guided:
        """The guide that a configuration asks for, which is in use by the purifier `user` until that asks for another."""
        guidance = config.guidance
        if guidance.scale > 0:  # the strength and its growth belong to the plan
            guidance = dataclasses.replace(guidance, scale=1.0, form="score", growth="constant")
        straight_through = config.gradient == "straight_through"
        made_of = network, guidance, straight_through

        def found() -> Guided:
            return self._guides.get(made_of) or Guided(make_guide(network, guidance, straight_through))

        with self._turn:
            guided = _kept(self._last_guides, made_of, found, MOST_GUIDES)
            self._guides[made_of] = self._in_use[user] = guided
        return guided


def _kept(kept: dict[Hashable, Kept], key: Hashable, make: Callable[[], Kept], most: int) -> Kept:
    """What is kept by `key`, made where it is not; of all, the `most` last used stay."""
    value = kept.pop(key) if key in kept else make()
    kept[key] = value
    while len(kept) > most:
        del kept[next(iter(kept))]
    return value


class Placement(NamedTuple):
    """Where the networks are, and their precision where it is not that of x_t."""

    device: torch.device
    net_dtype: torch.dtype | None


class Purification(NamedTuple):
    """A denoiser, a guide and how they purify; for one call, or one question."""

    denoiser: AnyDenoiser
    guided: Guided
    config: PurifierConfig
    execution: Execution
    shared: Shared
    is_replica: bool = False

    @property
    def execution_reason(self) -> str | None:
        """Why calls run step by step; None where they replay captured graphs."""
        if self.execution == "loop":
            return "as asked for"
        device = devices.device_of(self.denoiser).type
        if device not in GRAPHS_ON:
            return f"nothing is recorded on {device}, where the networks are"
        if autocast.is_on(device):
            return AUTOCAST
        if device == "cpu" and ops.is_observed():
            return "a mode, a tracer or a profiler is active, and would see nothing of a replay"
        if is_python_traced():
            return TRACED
        unet = self.denoiser.config
        if device == "cpu" and unet.in_channels * unet.image_size**2 > MOST_VALUES:
            return LARGE
        return self._refusal or self.guided.replay.refused

    @property
    def _refusal(self) -> str | None:
        """Why nothing may be replayed, even where graphs are asked for."""
        if self.is_replica:
            return REPLICA
        hooked = self.guided.hooked(self.denoiser)
        return None if hooked is None else f"a hook on {hooked} would not run in a replay; remove it, or take execution='loop'"

    def plan(self, dtype: torch.dtype, num_steps: int | None = None, cycle: int = 0) -> ReversePlan:
        """The reverse plan of one cycle for images of `dtype`; of another number of steps where `num_steps` is given."""
        device, net_dtype = devices.device_of(self.denoiser), devices.dtype_of(self.denoiser)
        where = Placement(device, None if net_dtype == dtype else net_dtype)
        return self.shared.plan(self.config, num_steps, cycle, where)

    def process(self, dtype: torch.dtype, noise: NoiseKey, cycle: int = 0) -> ReverseProcess:
        """The reverse process of one cycle, for images of `dtype`."""
        return ReverseProcess(self.plan(dtype, cycle=cycle), self.denoiser, self.guided.guide, noise)

    def run(self, x: Images, noise: NoiseKey, on_step_end: OnStepEnd | None = None) -> Images:
        """`x` [B, C, H, W] in [-1, 1] purified, all cycles one after another; with the configuration's gradient where autograd
        records."""
        for cycle in range(self.config.cycles):
            key = derive_seed(noise.key, CYCLES + cycle) if cycle else noise.key
            x = self._cycle(x, NoiseKey(key, noise.ids), on_step_end, cycle)
        return x

    def _cycle(self, x: Images, noise: NoiseKey, on_step_end: OnStepEnd | None, cycle: int) -> Images:
        process = self.process(x.dtype, noise, cycle)
        if torch.is_grad_enabled():
            warn_of_masking(process.guide, self.config.gradient, x)
            surrogate = self.plan(x.dtype, self.config.surrogate_steps, cycle)
            how: Any = {"mode": self.config.gradient, "surrogate": surrogate, "on_step_end": on_step_end}
            if on_step_end is not None:
                return purify(Loop(), process, x, **how)
            return self._executed(lambda executor: purify(executor, process, x, **how))
        if on_step_end is not None and (self.execution_reason is not None or not self.guided.replay.tells_every_step(x.device)):
            return Loop().run(process, x, on_step_end)
        return self._executed(lambda executor: executor.run(process, x, on_step_end))

    def _executed(self, work: Callable[[Executor], Images]) -> Images:
        """`work` by replay where it may be had; by the loop elsewhere, and where a capture fails unless graphs were asked for."""
        if self.execution_reason is not None and self.execution != "graph":
            return work(Loop())
        if self.execution == "graph" and (refusal := self._refusal) is not None:
            raise CaptureError(refusal)
        replay = self.guided.replay
        try:
            return work(replay)
        except CaptureError as failed:
            if self.execution == "graph":
                raise
            replay.refused = str(failed)
            return work(Loop())
