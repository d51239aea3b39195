"""`GuidedPurifier`: the door. The only place where [0, 1] images and the model's [-1, 1] space meet."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from purify_engine import devices
from purify_engine.config import PurifierConfig, one_of, require
from purify_engine.defended import DefendedClassifier, Vote
from purify_engine.engine.bridges import Bridge, make_bridge
from purify_engine.engine.calibration import guidance_scale_for, step_memory
from purify_engine.engine.gradients import refuse_parameter_gradients
from purify_engine.engine.plan import ReversePlan
from purify_engine.engine.process import OnStepEnd
from purify_engine.engine.purification import Execution, Purification, Shared
from purify_engine.engine.suitability import require_suitable
from purify_engine.engine.uncompiled import uncompiled
from purify_engine.engine.weights import check_weights
from purify_engine.images import check_images, from_model_space, image_ids, in_model_space
from purify_engine.models.derived import Watched
from purify_engine.models.own import DenoisingNetwork, GuideNetwork, facts_of
from purify_engine.noise import Streams, noise_of
from purify_engine.siblings import write_once
from purify_engine.stored import StoredPurifier
from purify_engine.tracing import UNTRACEABLE, NotTraced, called
from purify_engine.types import Ids, Images, NoiseKey


class GuidedPurifier(NotTraced, StoredPurifier):
    """Images in, the same images without their adversarial perturbation out: a drop-in before any classifier.

    Float NCHW images in [0, 1] go in; the same shape, dtype and device come out, in [0, 1] too unless `config.clamp` is False.
    `config.sizes` says which heights and widths are taken, and how.
    `nn.Sequential(purifier, classifier)` is a defended classifier, differentiable in the way that `config.gradient` names.
    PyTorch's random generators are touched only where `noise="torch"` or a `generator` says so.

    denoiser: the diffusion model. guide: the auxiliary network of adversarial guidance, a classifier of [0, 1] images;
    None where `config.guidance` needs none. Both are frozen and stay in evaluation mode.
    execution: "graph" replays a captured step (a CUDA graph, or a recording on a CPU), "loop" runs step by step, "auto" takes
    graphs where they can be had and says in `execution_reason` why not: a hook on a layer, for one, which a replay would not
    run. The images are the same. Tools that count operations see nothing of a replay.
    Weights may be changed by any of PyTorch's ways between calls (docs/weights.md).
    """

    seed: Tensor

    def __init__(
        self, denoiser: DenoisingNetwork, guide: GuideNetwork | None, config: PurifierConfig, *, execution: Execution = "auto"
    ) -> None:
        one_of("execution", execution, Execution)
        require_suitable(config, facts_of(denoiser, guide), guide)
        super().__init__(denoiser, guide, config)
        self.execution = execution
        self.streams = Streams(config.seed)
        with torch.inference_mode(False):  # or `reseed` could not change it
            self.register_buffer("seed", torch.tensor(self.streams.named, device=self.device), persistent=False)
        self._shared = Shared()
        self._watched = Watched(self)
        self.requires_grad_(False).train(False)
        check_weights(self.denoiser, self.guide)
        write_once(self.denoiser, self.guide)

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
        return self._purification().execution_reason

    @property
    def device(self) -> torch.device:
        """Where the networks are, and where images must be."""
        return devices.device_of(self.denoiser)

    @property
    def dtype(self) -> torch.dtype:
        """Of the networks; images may be of any floating-point dtype."""
        return devices.dtype_of(self.denoiser)

    def forward(
        self,
        images: Images,
        *,
        ids: Ids | Sequence[int] | None = None,
        draw: int | Tensor | Sequence[int] | None = None,
        num_draws: int | None = None,
        generator: torch.Generator | None = None,
        t_star: int | None = None,
        num_steps: int | None = None,
        callback_on_step_end: OnStepEnd | None = None,
    ) -> Images:
        """Purified `images`, float [B, C, H, W] in [0, 1]; [num_draws, B, C, H, W] where `num_draws` is given.

        Noise (docs/noise.md): `ids` (int64 [B]) give every image its own, whatever its batch; `draw` names the draw, a number in
        [0, 2**32) or one an image, [B]; from `generator` a seed is drawn. Where none is given, `config.noise` decides.
        num_draws: so many draws of every image in one call: from `draw` on, or fresh ones.
        t_star, num_steps: of this call alone, in place of the configuration's.
        callback_on_step_end(step, t, x_t) sees each intermediate image, on GPUs a graph's, copied. x_t is what the network sees:
        resized, or one tile after another, row by row. Where a gradient is recorded x_t has its own, for losses on it, but in the
        modes bpda and surrogate.
        Raises ValueError where `images` are not what the networks read, TypeError where they are not floats, RuntimeError where
        PyTorch would trace or transform the call in a way that comes out wrong (tracing.py).
        """
        names = {"ids": ids, "draw": draw, "num_draws": num_draws, "generator": generator}
        return self._called(images, names, {"t_star": t_star, "num_steps": num_steps}, callback_on_step_end)

    @uncompiled(UNTRACEABLE)
    def _called(self, images: Images, names: dict[str, Any], asked: dict[str, Any], on_step_end: OnStepEnd | None) -> Images:
        purify = partial(self._drawn, num_draws=names["num_draws"], asked=asked, on_step_end=on_step_end)
        return called(purify, partial(self._noise, **names), images, self, on_step_end)

    def _noise(self, images: Images, **names: Any) -> NoiseKey:
        self._check(images)
        return noise_of(self.streams, self.config.noise, images, **names)

    def _drawn(
        self, images: Images, noise: NoiseKey, *, num_draws: int | None, asked: dict[str, Any], on_step_end: OnStepEnd | None
    ) -> Images:
        how = self._purification(**asked)
        if num_draws is None:
            return self._given(images, noise, how, on_step_end)
        return self._given(torch.cat([images] * num_draws), noise, how, on_step_end).view(num_draws, *images.shape)

    def _given(self, images: Images, noise: NoiseKey, how: Purification, on_step_end: OnStepEnd | None) -> Images:
        """By the mode that PyTorch is in."""
        if torch.is_inference_mode_enabled():  # guidance needs autograd, which inference tensors refuse
            with torch.inference_mode(False), torch.no_grad():
                return self._purify(images.clone(), noise, how, on_step_end)
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in self._watched.tensors()):
            refuse_parameter_gradients(self.denoiser, self.guide)
        with torch.set_grad_enabled(torch.is_grad_enabled() and images.requires_grad):
            return self._purify(images, noise, how, on_step_end)

    def _purify(self, images: Images, noise: NoiseKey, how: Purification, on_step_end: OnStepEnd | None) -> Images:
        if images.numel() == 0:
            return images.clone()
        x = in_model_space(images, self.config)
        if torch.is_grad_enabled() and self.config.gradient == "blind":  # which knows of no bridge either
            require(on_step_end is None, "callback_on_step_end", "None where gradient is 'blind'", on_step_end)
        else:
            bridge = self.bridge
            x = bridge.joined((how.run(part, drawn, on_step_end) for part, drawn in bridge.parts(x, noise)), x)
        return from_model_space(x, images, self.config)

    def _purification(self, **changes: Any) -> Purification:
        """How a call purifies: as configured, but for `changes` that are not None."""
        asked = {name: value for name, value in changes.items() if value is not None}
        config = dataclasses.replace(self.config, **asked) if asked else self.config
        guided = self._shared.guided(self, self.guide, config)
        return Purification(self.denoiser, guided, config, self.execution, self._shared, devices.is_replica(self))

    def plan(self, dtype: torch.dtype = torch.float32, num_steps: int | None = None, cycle: int = 0) -> ReversePlan:
        """The reverse plan of one cycle on this purifier's device, for images of `dtype`; cycles as deep as each other share it.

        num_steps: another number of steps, as many as there are timesteps at most.
        """
        return self._purification().plan(dtype, num_steps, cycle)

    @property
    def num_steps(self) -> int:
        """Reverse steps of a whole purification, all cycles together: calls of the U-Net."""
        return sum(len(self.plan(cycle=cycle)) for cycle in range(self.config.cycles))

    def _check(self, images: Images) -> None:
        check_images(images, self.denoiser.config.in_channels, self.bridge, self.device, self.config)

    @property
    def bridge(self) -> Bridge:
        """What `config.sizes` does to images of other sizes than the network's, and which of them it refuses."""
        return make_bridge(self.config, self.denoiser.config)

    def configured(self, **changes: Any) -> GuidedPurifier:
        """A sibling on the same networks with another configuration: `purifier.configured(gradient="bpda", t_star=100)`.

        Siblings share what was recorded. A sibling's fresh noise is its own; given a `seed`, it starts at that seed's first draw.
        changes: fields of `PurifierConfig`. Raises ValueError where a value is impossible, or does not suit the networks.
        """
        streams = Streams(changes["seed"], self.streams.stream) if "seed" in changes else self.streams.sibling()
        return self._sibling(dataclasses.replace(self.config, **changes), streams)

    def twin(self, stream: str) -> GuidedPurifier:
        """A sibling that draws from another stream: what it draws, named or fresh, is independent of what this one draws.

        stream: its name, as in `purifier.twin("attack")`; one name is one stream, and "" the defence's own.
        """
        return self._sibling(self.config, Streams(self.config.seed, stream, self.streams.sibling().lineage))

    def defend(self, classifier: Callable[[Images], Any], num_draws: int = 1, vote: Vote = "logits") -> DefendedClassifier:
        """This purifier before `classifier` as one module, images in and logits out, by `vote` over `num_draws` draws."""
        return DefendedClassifier(self, classifier, num_draws, vote)

    def _sibling(self, config: PurifierConfig, streams: Streams) -> GuidedPurifier:
        sibling = GuidedPurifier(self.denoiser, self.guide, config, execution=self.execution)
        sibling._shared = self._shared
        return sibling._drawing_from(streams)

    def _drawing_from(self, streams: Streams) -> GuidedPurifier:
        self.streams = streams
        self.seed.fill_(streams.named)
        return self

    def reseed(self, seed: int | None) -> GuidedPurifier:
        """Start the noise anew from `seed`, in [0, 2**63), and give this purifier; None: fresh noise that is not reproducible."""
        self.config = dataclasses.replace(self.config, seed=seed)
        return self._drawing_from(Streams(seed, self.streams.stream))

    def _replicate_for_data_parallel(self) -> GuidedPurifier:
        replica = super()._replicate_for_data_parallel()
        replica.streams = self.streams.sibling()
        replica._shared = self._shared.of_replica()
        return replica

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
        probe = self._purification(guidance=unit)
        noise = noise_of(self.streams, "fixed", images, ids=image_ids(images))
        x = in_model_space(images, self.config)
        depths = self.config.depths
        processes = [probe.process(x.dtype, noise, depths.index(t_star)) for t_star in dict.fromkeys(depths)]
        return guidance_scale_for(processes, x, ratio, quantile, self.bridge, unit.growth)

    def memory_report(self, height: int | None = None, width: int | None = None) -> dict[str, int]:
        """Bytes: of the parameters, and for each image of a batch under the exact gradient, of its visited trajectory over all
        cycles and of one step's recorded networks, measured. `height` and `width` of the images: by default the network's own."""
        network, bridge = self.denoiser.config, self.bridge
        shape = network.in_channels, height or network.image_size, width or network.image_size
        probe = torch.full((1, *shape), self.config.image_range[0], device=self.device)
        self._check(probe)
        parts = list(bridge.parts(probe, noise_of(self.streams, "fixed", probe)))
        part, noise = parts[0]
        process = self._purification().process(torch.float32, noise)
        return {
            "parameters": sum(p.numel() * p.element_size() for p in self.parameters()),
            "trajectory_per_image": len(parts) * self.num_steps * part.numel() * part.element_size(),
            "step_per_image": step_memory(process, part.contiguous()),
        }
