"""`GuidedPurifier`: the door. The only place where [0, 1] images and the model's [-1, 1] space meet."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from purify_engine import devices, ops
from purify_engine.config import PurifierConfig, one_of, require
from purify_engine.engine.bridges import Bridge, make_bridge
from purify_engine.engine.calibration import guidance_scale_for, step_memory
from purify_engine.engine.capture import CaptureError
from purify_engine.engine.cpu_capture import LARGE, MOST_VALUES
from purify_engine.engine.gradients import purify, refuse_parameter_gradients
from purify_engine.engine.guide import Guide, make_guide
from purify_engine.engine.loop import Loop
from purify_engine.engine.plan import ReversePlan, make_plan
from purify_engine.engine.process import Executor, OnStepEnd, ReverseProcess
from purify_engine.engine.replay import AUTOCAST, GRAPHS_ON, Replay
from purify_engine.engine.suitability import require_suitable
from purify_engine.images import check_images, from_model_space, image_ids, in_model_space
from purify_engine.models.derived import Watched
from purify_engine.models.own import DenoisingNetwork, GuideNetwork, facts_of
from purify_engine.ops import autocast
from purify_engine.reference.philox import derive_seed, derived_number
from purify_engine.stored import StoredPurifier
from purify_engine.types import Ids, Images, Key, NoiseKey

Execution = Literal["auto", "loop", "graph"]

DRAWS, CYCLES = 2**32, 2**33  # first seed streams of the independent draws, and of the cycles within one draw


class GuidedPurifier(StoredPurifier):
    """Images in, the same images without their adversarial perturbation out: a drop-in before any classifier.

    Float NCHW images in [0, 1] go in; the same shape, dtype and device come out, in [0, 1] too unless `config.clamp` is False.
    `config.sizes` says which heights and widths are taken, and how.
    `nn.Sequential(purifier, classifier)` is a defended classifier, differentiable in the way that `config.gradient` names.
    PyTorch's random generators are never touched.

    denoiser: the diffusion model. guide: the auxiliary network of adversarial guidance, a classifier of [0, 1] images;
    None where `config.guidance` needs none. Both are frozen and stay in evaluation mode.
    execution: "graph" replays a captured step (a CUDA graph, or a recording on a CPU), "loop" runs step by step, "auto" takes
    graphs where they can be had and says in `execution_reason` why not. The images are the same. Hooks on the networks, and
    tools that count operations, see nothing of a replay.
    """

    seed: Tensor

    def __init__(
        self, denoiser: DenoisingNetwork, guide: GuideNetwork | None, config: PurifierConfig, *, execution: Execution = "auto"
    ) -> None:
        one_of("execution", execution, Execution)
        require_suitable(config, facts_of(denoiser, guide), guide)
        super().__init__(denoiser, guide, config)
        self.execution = execution
        self.register_buffer("seed", torch.tensor(config.seed, device=next(denoiser.parameters()).device), persistent=False)
        self._draws = 0
        self._plans: dict[Any, ReversePlan] = {}
        self._guides: dict[Any, Guide] = {}  # the one in use, by what it is made of: captured graphs are of this very object
        self._replay = Replay()
        self._watched = Watched(self)
        self.requires_grad_(False).train(False)

    def train(self, mode: bool = True) -> GuidedPurifier:
        """Stays in evaluation mode, also where the model around it trains."""
        return super().train(False)

    def extra_repr(self) -> str:
        reason = self.execution_reason
        execution = f"loop ({reason})" if reason else "graph"
        return f"{self.config!r}, {devices.described(self.denoiser)}, execution={execution}"

    @property
    def execution_reason(self) -> str | None:
        """Why calls run step by step; None where they replay captured graphs."""
        if self.execution == "loop":
            return "as asked for"
        device = self.seed.device.type
        if device not in GRAPHS_ON:
            return f"nothing is recorded on {device}, where the networks are"
        if autocast.is_on(device):
            return AUTOCAST
        if device == "cpu" and ops.is_observed():
            return "a mode, a tracer or a profiler is active, and would see nothing of a replay"
        unet = self.denoiser.config
        if device == "cpu" and unet.in_channels * unet.image_size**2 > MOST_VALUES:
            return LARGE
        return self._replay.refused

    @torch.compiler.disable
    def forward(
        self,
        images: Images,
        *,
        ids: Ids | None = None,
        draw: int | None = None,
        callback_on_step_end: OnStepEnd | None = None,
    ) -> Images:
        """Purified `images`, float [B, C, H, W] in [0, 1].

        Noise: with `ids` (int64 [B]) every image has its own by id, whatever its batch; `draw=k` names the k-th independent draw;
        without either, `config.noise` decides: "fresh" takes the next draw at every call, "fixed" always the same one.
        callback_on_step_end(step, t, x_t) sees each intermediate image, in calls without gradient; on GPUs a graph's, copied. x_t
        is what the network sees: resized, or one tile after another, row by row.
        Raises ValueError where `images` are not what the networks read, TypeError where they are not floats.
        """
        self._check(images)
        noise = NoiseKey(self._key(ids, draw), image_ids(images, ids))
        if torch.is_inference_mode_enabled():  # guidance needs autograd, which inference tensors refuse
            with torch.inference_mode(False), torch.no_grad():
                return self._purify(images.clone(), noise, callback_on_step_end)
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in self._watched.tensors()):
            refuse_parameter_gradients(self.denoiser, self.guide)
        with torch.set_grad_enabled(torch.is_grad_enabled() and images.requires_grad):
            return self._purify(images, noise, callback_on_step_end)

    def _purify(self, images: Images, noise: NoiseKey, on_step_end: OnStepEnd | None) -> Images:
        if images.numel() == 0:
            return images
        x = in_model_space(images, self.config)
        if not (torch.is_grad_enabled() and self.config.gradient == "blind"):  # which knows of no bridge either
            bridge = self.bridge
            x = bridge.joined((self._cycles(part, drawn, on_step_end) for part, drawn in bridge.parts(x, noise)), x)
        return from_model_space(x, images, self.config)

    def _cycles(self, x: Images, noise: NoiseKey, on_step_end: OnStepEnd | None) -> Images:
        for cycle in range(self.config.cycles):
            key = derive_seed(noise.key, CYCLES + cycle) if cycle else noise.key
            x = self._cycle(x, NoiseKey(key, noise.ids), on_step_end, cycle)
        return x

    def _cycle(self, x: Images, noise: NoiseKey, on_step_end: OnStepEnd | None, cycle: int) -> Images:
        process = ReverseProcess(self.plan(x.dtype, cycle=cycle), self.denoiser, self._guide(), noise)
        if torch.is_grad_enabled():
            surrogate = self.plan(x.dtype, self.config.surrogate_steps, cycle)
            return self._executed(lambda executor: purify(executor, process, x, mode=self.config.gradient, surrogate=surrogate))
        if on_step_end is not None and (self.execution_reason is not None or not self._replay.tells_every_step(x.device)):
            return Loop().run(process, x, on_step_end)
        return self._executed(lambda executor: executor.run(process, x, on_step_end))

    def _executed(self, work: Callable[[Executor], Images]) -> Images:
        """`work` by replay where it may be had; by the loop elsewhere, and where a capture fails unless graphs were asked for."""
        if self.execution_reason is not None and self.execution != "graph":
            return work(Loop())
        try:
            return work(self._replay)
        except CaptureError as failed:
            if self.execution == "graph":
                raise
            self._replay.refused = str(failed)
            return work(Loop())

    def plan(self, dtype: torch.dtype = torch.float32, num_steps: int | None = None, cycle: int = 0) -> ReversePlan:
        """The reverse plan of one cycle on this purifier's device, for images of `dtype`; cycles as deep as each other share it.

        num_steps: another number of steps, as many as there are timesteps at most.
        """
        parameter = next(self.denoiser.parameters())
        net_dtype = None if parameter.dtype == dtype else parameter.dtype
        key = self.config, num_steps, parameter.device, net_dtype, self.config.depths[cycle]
        if key not in self._plans:
            devices.require_float64(parameter.device)
            self._plans[key] = make_plan(self.config, num_steps, cycle).to(parameter.device, net_dtype)
        return self._plans[key]

    @property
    def num_steps(self) -> int:
        """Reverse steps of a whole purification, all cycles together: calls of the U-Net."""
        return sum(len(self.plan(cycle=cycle)) for cycle in range(self.config.cycles))

    def _guide(self) -> Guide:
        made_of = self.guide, self.config.guidance, self.config.gradient == "straight_through"
        guide = self._guides.get(made_of)
        if guide is None:
            guide = make_guide(*made_of)
            self._guides = {made_of: guide}
        return guide

    def _key(self, ids: Ids | None, draw: int | None) -> Key:
        if draw is None and (ids is not None or self.config.noise == "fixed"):
            return self.seed
        if draw is None:
            draw, self._draws = self._draws, self._draws + 1
        require(0 <= draw < DRAWS, "draw", f"in [0, {DRAWS})", draw)
        return torch.full_like(self.seed, derived_number(self.config.seed, DRAWS + draw))

    def _check(self, images: Images) -> None:
        check_images(images, self.denoiser.config.in_channels, self.bridge, self.seed.device, self.config)

    @property
    def bridge(self) -> Bridge:
        """What `config.sizes` does to images of other sizes than the network's, and which of them it refuses."""
        return make_bridge(self.config, self.denoiser.config)

    def configured(self, **changes: Any) -> GuidedPurifier:
        """A sibling on the same networks with another configuration: `purifier.configured(gradient="bpda", t_star=100)`."""
        config = dataclasses.replace(self.config, **changes)
        return GuidedPurifier(self.denoiser, self.guide, config, execution=self.execution)

    def reseed(self, seed: int) -> GuidedPurifier:
        """Start the noise anew from `seed`, in [0, 2**63)."""
        self.config = dataclasses.replace(self.config, seed=seed)
        self.seed.fill_(seed)
        self._draws = 0
        return self

    def calibrate(self, images: Images, ratio: float, quantile: float = 0.5) -> float:
        """The guidance scale s at which guidance has `ratio` times the length of unit noise prediction (docs/math.md E13).

        images: training images in [0, 1], never the ones evaluated on. ratio: r, typically in [0, 1]. quantile: of the pull over
        images and steps, of each cycle that is deeper or shallower than those before it; the label gradient vanishes where the
        guide is certain, so the mean says little.
        """
        self._check(images)
        require(ratio >= 0, "ratio", "at least 0", ratio)
        require(0 < quantile < 1, "quantile", "in (0, 1)", quantile)
        unit = dataclasses.replace(self.config.guidance, scale=1.0, normalised=False)
        probe = self.configured(guidance=unit)
        noise = NoiseKey(self.seed, image_ids(images))
        x = in_model_space(images, self.config)
        depths = self.config.depths
        plans = (probe.plan(x.dtype, cycle=depths.index(t_star)) for t_star in dict.fromkeys(depths))
        processes = [ReverseProcess(plan, self.denoiser, probe._guide(), noise) for plan in plans]
        return guidance_scale_for(processes, x, ratio, quantile, self.bridge, unit.growth)

    def memory_report(self, height: int | None = None, width: int | None = None) -> dict[str, int]:
        """Bytes: of the parameters, and for each image of a batch under the exact gradient, of its visited trajectory over all
        cycles and of one step's recorded networks, measured. `height` and `width` of the images: by default the network's own."""
        network, bridge = self.denoiser.config, self.bridge
        shape = network.in_channels, height or network.image_size, width or network.image_size
        probe = torch.zeros(1, *shape, device=self.seed.device)
        self._check(probe)
        parts = list(bridge.parts(probe, NoiseKey(self.seed, image_ids(probe))))
        part, noise = parts[0]
        process = ReverseProcess(self.plan(), self.denoiser, self._guide(), noise)
        return {
            "parameters": sum(p.numel() * p.element_size() for p in self.parameters()),
            "trajectory_per_image": len(parts) * self.num_steps * part.numel() * part.element_size(),
            "step_per_image": step_memory(process, part.contiguous()),
        }
