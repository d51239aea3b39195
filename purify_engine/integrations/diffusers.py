"""Ours in the pipelines of diffusers (0.32 to 0.42): our U-Net as their `unet`, our plan as their scheduler.

`DDPMPipeline(UNet2D(denoiser.unet), DDPMScheduler())` samples with our network; `PlanScheduler(plan)` walks our plan in a loop
written for theirs. The other way, from their objects to a purifier, is `GuidedPurifier.from_diffusers`. Importing this module
needs diffusers: pip install 'purify-engine[diffusers]'.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from purify_engine import devices, ops
from purify_engine.config import Prediction, require
from purify_engine.engine.guide import NoGuide
from purify_engine.engine.plan import ReversePlan
from purify_engine.engine.process import ReverseProcess
from purify_engine.foreign import imported
from purify_engine.models.unet import UNet
from purify_engine.reference.prediction import mixture
from purify_engine.reference.process import diffuse, update
from purify_engine.types import Images, NoiseKey, Step

_FROZEN_DICT: Any = imported("diffusers.configuration_utils", "diffusers", "diffusers").FrozenDict
_UNET_OUTPUT: Any = imported("diffusers.models.unets.unet_2d", "diffusers", "diffusers").UNet2DOutput
_SCHEDULER_OUTPUT: Any = imported("diffusers.schedulers.scheduling_utils", "diffusers", "diffusers").SchedulerOutput
_RANDN: Any = imported("diffusers.utils.torch_utils", "diffusers", "diffusers").randn_tensor

PREDICTIONS: dict[Prediction, str] = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}


class UNet2D(nn.Module):
    """Our U-Net with the calls of a `UNet2DModel`: equal to `unet(sample, timestep)` to the bit, in the pipelines of diffusers.

    `config` has sample_size, in_channels and out_channels. What the network puts out is the scheduler's affair, as in diffusers:
    prediction_type "epsilon", "sample" or "v_prediction", variance_type "learned_range" where it learns one. ValueError where it
    is one of EDM's, which are told another time.
    """

    def __init__(self, unet: UNet) -> None:
        super().__init__()
        if not isinstance(unet, UNet):
            raise TypeError(f"unet must be a UNet of ours, as purifier.denoiser.unet, got {type(unet).__name__}")
        config, known = unet.config, f"one of {', '.join(PREDICTIONS)} for diffusers"
        require(config.prediction in PREDICTIONS, "prediction", known, config.prediction)
        out_channels = config.in_channels * (2 if config.learned_variance else 1)
        self.config = _FROZEN_DICT(
            sample_size=config.image_size, in_channels=config.in_channels, out_channels=out_channels, class_embed_type=None
        )
        self.unet = unet

    @property
    def device(self) -> torch.device:
        return devices.device_of(self)

    @property
    def dtype(self) -> torch.dtype:
        return devices.dtype_of(self)

    def forward(
        self, sample: Images, timestep: Tensor | float | int, class_labels: None = None, return_dict: bool = True
    ) -> Any:
        """`UNet2DOutput` of the prediction at `timestep`, one or [B]; a tuple of it without `return_dict`."""
        require(class_labels is None, "class_labels", "None: the network is unconditional", type(class_labels).__name__)
        predicted = self.unet(sample, torch.as_tensor(timestep, device=sample.device).reshape(-1))
        return _UNET_OUTPUT(sample=predicted) if return_dict else (predicted,)


class PlanScheduler:
    """A reverse plan with the calls of a diffusers scheduler: a loop written for one walks our plan, without a guide.

    scheduler = PlanScheduler(purifier.plan())
    x = scheduler.add_noise(2 * images - 1, torch.randn_like(images), scheduler.timesteps[:1])
    for t in scheduler.timesteps:
        x = scheduler.step(unet(x, t).sample, t, x).prev_sample

    plan: of a purifier whose guidance is none, or of `write_plan`. prediction: what the model puts out. noise: the key and the
    ids of the normals that steps draw, as those of a purification; None: PyTorch's, from `generator`, as diffusers draws them,
    and in the same steps. ValueError where the plan is guided, or told labels that come twice.
    """

    order = 1
    init_noise_sigma = 1.0

    def __init__(self, plan: ReversePlan, *, prediction: Prediction = "eps", noise: NoiseKey | None = None) -> None:
        require(not plan.guided, "plan", "one without guidance, which schedulers have no place for", plan)
        require(prediction in PREDICTIONS, "prediction", f"one of {', '.join(PREDICTIONS)}", prediction)
        self.plan, self.noise = plan, noise
        self.timesteps = plan.times.to(torch.int64)
        told = self.timesteps.tolist()
        self._places = {t: place for place, t in enumerate(told)}
        require(len(self._places) == len(plan), "plan", "one that tells every step another time", plan)
        self._draws = (plan.rows[:, 3] != 0).tolist()  # whether a step adds noise: diffusers' schedulers draw none elsewhere
        self._mixture = mixture(prediction, plan.marginals)
        self.num_inference_steps = len(plan)
        variance = "learned_range" if plan.learns_variance else "fixed"
        self.config = _FROZEN_DICT(
            num_train_timesteps=told[0] + 1,
            prediction_type=PREDICTIONS[prediction],
            variance_type=variance,
            clip_sample=plan.clip_x0 != "never",
        )

    def __len__(self) -> int:
        return len(self.plan)

    def set_timesteps(self, num_inference_steps: int | None = None, device: torch.device | str | None = None) -> None:
        """The plan has its steps: as many as there are, or None. device: where `timesteps` are to be."""
        wanted = f"None or {len(self.plan)}, the plan's own (PurifierConfig.num_steps makes another)"
        require(num_inference_steps in (None, len(self.plan)), "num_inference_steps", wanted, num_inference_steps)
        if device is not None:
            self.timesteps = self.timesteps.to(device)

    def scale_model_input(self, sample: Images, timestep: Tensor | int | None = None) -> Images:
        """`sample` itself."""
        return sample

    def add_noise(self, original_samples: Images, noise: Images, timesteps: Tensor) -> Images:
        """Images in [-1, 1] noised to the marginal of their timesteps, [1] or [B], each one of the plan's."""
        places = [self._place(t) for t in timesteps.reshape(-1).tolist()]
        marginals = self.plan.marginals[places].to(original_samples.device)
        return diffuse(original_samples, noise, marginals.T[:, :, None, None, None])

    def step(
        self,
        model_output: Tensor,
        timestep: Tensor | int,
        sample: Images,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
        *,
        variance_noise: Images | None = None,
    ) -> Any:
        """One reverse step from `sample` at `timestep`: an object with `prev_sample`, or a tuple of it.

        model_output: [B, C, H, W], twice the channels where the plan's variance is learned. variance_noise: the normals to add,
        in place of those of `noise` or `generator`.
        """
        x_t = sample.to(torch.promote_types(sample.dtype, torch.float32))
        place = self._place(int(timestep))
        step = self.plan.steps[place]
        process = ReverseProcess(self.plan, self._given(model_output, x_t, step), NoGuide(), self.noise or _none_of(x_t))
        if variance_noise is None and self.noise is not None:
            x_next, _ = process.step(x_t, x_t, (), step)
        else:
            if variance_noise is None and self._draws[place]:
                variance_noise = _RANDN(x_t.shape, generator=generator, device=x_t.device, dtype=x_t.dtype)
            x_next = _with_noise(process, x_t, step, variance_noise)
        x_next = x_next.to(sample.dtype)
        return _SCHEDULER_OUTPUT(prev_sample=x_next) if return_dict else (x_next,)

    def forward_noise(self, like: Images) -> Images:
        """The normals of `noise` that a purification adds at its beginning, for `add_noise`: of the shape of `like`."""
        require(self.noise is not None, "noise", "given to the scheduler: it is whose normals these are", None)
        assert self.noise is not None
        dtype = torch.promote_types(like.dtype, torch.float32)
        return ops.philox_normal(*self.noise, self.plan.forward_step, like.shape[1:].numel(), dtype=dtype).view(like.shape)

    def _place(self, t: int) -> int:
        require(t in self._places, "timestep", f"one of the plan's {len(self.plan)}, {[*self._places][:3]} …", t)
        return self._places[t]

    def _given(self, model_output: Tensor, x_t: Images, step: Step) -> Any:
        """A model that predicts what was predicted."""
        channels = x_t.shape[1]
        by_x, by_output, _ = self._mixture.index_select(0, step.reshape(1)).squeeze(0).to(x_t.dtype).unbind()
        is_noise = self.config.prediction_type == "epsilon"
        first = model_output[:, :channels].to(x_t.dtype)
        eps = first if is_noise else by_x * x_t + by_output * first
        predicted = (eps, model_output[:, channels:]) if self.plan.learns_variance else eps
        return lambda x_net, plan, step: predicted


def _with_noise(process: ReverseProcess, x_t: Images, step: Step, noise: Images | None) -> Images:
    """The step with these normals in place of the process's own; None: without any."""
    x_t, eps, log_variance = process.predicted(x_t, x_t, step)
    noise = torch.zeros_like(x_t) if noise is None else noise.to(x_t.dtype)
    if log_variance is not None:
        noise = (log_variance / 2).exp() * noise
    return update(x_t, eps.to(x_t.dtype), None, noise, process.plan.rows.index_select(0, step).squeeze(0))


def _none_of(x_t: Images) -> NoiseKey:
    """The noise of a process whose noise is not drawn."""
    ids = torch.zeros(len(x_t), dtype=torch.int64, device=x_t.device)
    return NoiseKey(ids.new_zeros(()), ids)
