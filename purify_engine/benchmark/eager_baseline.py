"""The opponents: the same purification as a lab writes it in plain PyTorch, on the same weights and the same plan.

`eager fp32` is an honest one: PyTorch's defaults (TF32 convolutions where the GPU has them, NCHW), cudnn.benchmark, frozen
parameters, the schedule on the device. `eager bf16 channels_last` is the best that eager PyTorch does. `naive loop` has the
habits of published code (Nie et al. 2022, DiffPure, on guided-diffusion): parameters that require gradients, the schedule
fetched from numpy at every step.

None of them runs an op of ours: the U-Net is `PlainUNet`, noise is `torch.randn_like`, guidance is autograd on the classifier.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from purify_engine.benchmark.plain_unet import PlainUNet
from purify_engine.config import UNIT_RANGE, require
from purify_engine.engine.plan import ReversePlan
from purify_engine.models.denoiser import Denoiser
from purify_engine.models.own import AnyGuide
from purify_engine.purifier import GuidedPurifier
from purify_engine.reference import guidance
from purify_engine.reference.philox import FORWARD_STEP
from purify_engine.types import Images

Noise = Callable[[Images, int], Images]  # (like, counter of the step) -> normals; the forward process counts FORWARD_STEP


def gaussian(like: Images, step: int) -> Images:
    """PyTorch's own noise."""
    return torch.randn_like(like)


@contextlib.contextmanager
def cudnn_free_to_choose(by_timing: bool = True) -> Iterator[None]:
    """cudnn.benchmark on where `by_timing`, determinism not asked for; TF32 stays as PyTorch has it by default, on."""
    flags = torch.backends.cudnn
    before = flags.benchmark, flags.deterministic
    flags.benchmark, flags.deterministic = by_timing, False
    try:
        yield
    finally:
        flags.benchmark, flags.deterministic = before


@dataclass(frozen=True)
class Row:
    """One step's numbers, each a scalar tensor on the device or broadcastable."""

    a: Tensor
    b: Tensor
    d: Tensor
    c: Tensor
    signal: Tensor  # sqrt(alpha_bar)
    sigma: Tensor  # sqrt(1 - alpha_bar)
    t: Tensor  # [B], what the network is told


class EagerPurifier(nn.Module):
    """images [B, C, H, W] in [0, 1] -> the same purified, by ordinary PyTorch.

    dtype: of the networks; the images stay float32, or float64 where the networks are. channels_last: their memory format. The
    networks are copies: the purifier's own stay as they are.
    """

    frozen = True

    def __init__(self, purifier: GuidedPurifier, dtype: torch.dtype = torch.float32, *, channels_last: bool = False) -> None:
        super().__init__()
        config = purifier.config
        stars = config.cycle_t_stars
        require(stars is None, "cycle_t_stars", "None: the baseline walks one plan in every cycle", stars)
        require(config.sampler != "ddpm_learned", "sampler", "one of fixed variance for the baseline", config.sampler)
        require(config.image_range == UNIT_RANGE, "image_range", "(0, 1) for the baseline", config.image_range)
        require(config.clip_x0 == "never", "clip_x0", "'never': the baseline clips no estimate", config.clip_x0)
        self.config, self.dtype = config, dtype
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        prediction = purifier.denoiser.config.prediction
        require(prediction == "eps", "prediction", "'eps' for the eager baseline, which knows no other", prediction)
        denoiser, classifier = copy.deepcopy((purifier.denoiser, purifier.guide))
        ours = isinstance(denoiser, Denoiser)
        require(ours, "denoiser", "a Denoiser of our U-Net for the eager baseline", type(denoiser).__name__)
        assert isinstance(denoiser, Denoiser)
        self.unet: nn.Module = PlainUNet(denoiser.unet)
        self.classifier: AnyGuide | None = classifier if purifier.config.guidance.kind == "adversarial" else None
        self.to(dtype).to(memory_format=self.layout)  # type: ignore[call-overload]
        self.train(False).requires_grad_(not self.frozen)
        self.image_dtype = torch.promote_types(dtype, torch.float32)
        self.load_schedule(purifier.plan())

    def load_schedule(self, plan: ReversePlan) -> None:
        """Keep the plan's numbers where the loop wants them: on the device."""
        self.num_steps = len(plan)
        table = torch.cat([plan.rows, plan.marginals, plan.times[:, None]], dim=1)
        self.columns = [column.unbind() for column in table.to(self.image_dtype).unbind(dim=1)]

    def on_plan(self, plan: ReversePlan) -> EagerPurifier:
        """The same networks on another plan."""
        other = copy.copy(self)
        other.load_schedule(plan)
        return other

    def row(self, step: int, x_t: Images) -> Row:
        """The numbers of one step."""
        a, b, d, c, signal, sigma, t = (column[step] for column in self.columns)
        return Row(a, b, d, c, signal, sigma, t.expand(len(x_t)))

    @torch.no_grad()
    def forward(self, images: Images, noise: Noise = gaussian) -> Images:
        with cudnn_free_to_choose(by_timing=self.dtype != torch.float64):  # which is never timed, and choosing takes seconds
            x = 2 * images.to(self.image_dtype) - 1
            for _ in range(self.config.cycles):
                x = self.walk(x, noise)
            return ((x + 1) / 2).clamp(0, 1).to(images.dtype)

    def walk(self, x: Images, noise: Noise) -> Images:
        """Noise `x` to t*, then walk back under guidance."""
        target, start = self.target(x), self.row(0, x)
        x_t = start.signal * x + start.sigma * noise(x, FORWARD_STEP)
        for step in range(self.num_steps):
            x_t = self.step(x_t, target, self.row(step, x_t), noise, step)
        return x_t

    def step(self, x_t: Images, target: tuple[Tensor, ...], row: Row, noise: Noise, step: int) -> Images:
        """One guided reverse step (docs/math.md E7)."""
        x_net = x_t.to(self.dtype, memory_format=self.layout)
        eps = self.unet(x_net, row.t)
        x_next = row.a * x_t + row.b * eps + row.c * noise(x_t, step)
        pull = self.pull(x_t, eps, target, row, noise, step)
        return x_next if pull is None else x_next + row.d * pull

    def target(self, x: Images) -> tuple[Tensor, ...]:
        """What guidance stays near, read off the input once."""
        if self.classifier is None or not self.guided:
            return (x,)
        features, logits = self.classifier.features_and_logits((x.to(self.dtype, memory_format=self.layout) + 1) / 2)
        soft = logits.softmax(dim=1)
        return features, soft if self.config.guidance.pseudo_label == "soft" else guidance.one_hot(soft.argmax(dim=1), logits)

    @property
    def guided(self) -> bool:
        return self.config.guidance.scale > 0 and self.config.guidance.kind != "none"

    def pull(
        self, x_t: Images, eps: Images, target: tuple[Tensor, ...], row: Row, noise: Noise, step: int
    ) -> Images | None:
        """grad G at x_t, by autograd on the classifier."""
        config = self.config.guidance
        if not self.guided:
            return None
        if self.classifier is None:
            return guidance.pixel_gradient(x_t, row.signal * target[0] + row.sigma * noise(x_t, step))
        at_start = config.look_at == "x0"
        view = (x_t - row.sigma * eps) / row.signal if at_start else x_t
        with torch.enable_grad():
            view = view.to(self.dtype, memory_format=self.layout).detach().requires_grad_()
            (grad,) = torch.autograd.grad(self.objective(view, *target), view)
        grad = grad / row.signal if at_start else grad
        if not config.normalised:
            return grad
        return guidance.normalise(grad, torch.stack([row.signal.flatten()[0], row.sigma.flatten()[0]]), config.norm_eps)

    def objective(self, view: Images, features: Tensor, label: Tensor) -> Tensor:
        """G summed over the batch (docs/math.md E10, E11)."""
        assert self.classifier is not None
        config = self.config.guidance
        seen, logits = self.classifier.features_and_logits((view + 1) / 2)
        value = config.latent_weight * guidance.latent_objective(seen, features)
        if config.pseudo_label == "none":
            return value
        return value + config.label_weight * guidance.label_objective(logits, label)


class NaiveLoop(EagerPurifier):
    """The habits of published code, none of them a caricature: guided-diffusion's `_extract_into_tensor` fetches so."""

    frozen = False

    def load_schedule(self, plan: ReversePlan) -> None:
        """Keep the plan's numbers in numpy."""
        self.num_steps = len(plan)
        self.table = np.concatenate([tensor.cpu().numpy() for tensor in (plan.rows, plan.marginals, plan.times[:, None])], axis=1)

    def row(self, step: int, x_t: Images) -> Row:
        """The numbers of one step, each fetched to the device and repeated for every pixel."""
        index = torch.tensor([step] * len(x_t), device=x_t.device)
        *numbers, t = (torch.from_numpy(column).to(x_t.device)[index].to(self.image_dtype) for column in self.table.T)
        a, b, d, c, signal, sigma = (number[:, None, None, None].expand(x_t.shape) for number in numbers)
        return Row(a, b, d, c, signal, sigma, t)


def eager_fp32(purifier: GuidedPurifier) -> EagerPurifier:
    """PyTorch's defaults, done with care."""
    return EagerPurifier(purifier)


def eager_bf16(purifier: GuidedPurifier) -> EagerPurifier:
    """The best that eager PyTorch does on a GPU."""
    return EagerPurifier(purifier, torch.bfloat16, channels_last=True)


BASELINES: dict[str, Callable[[GuidedPurifier], Any]] = {
    "eager fp32": eager_fp32,
    "eager bf16 channels_last": eager_bf16,
    "naive loop": NaiveLoop,
}
