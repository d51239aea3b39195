"""What pulls the reverse process back to the input's meaning: nothing, an adversarially trained network, or the pixels.

A guide says two things: its `target`, read once off the un-noised input, and `grad`, the gradient of its objective G at a
noisy image. The target is a tuple of tensors, so that the gradient of the whole purifier can flow back through it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from purify_engine import ops
from purify_engine.config import GuidanceConfig
from purify_engine.devices import first_parameter
from purify_engine.engine.plan import ReversePlan
from purify_engine.models.own import FastGuideNetwork, GuideNetwork
from purify_engine.ops import switches
from purify_engine.reference import guidance
from purify_engine.reference.philox import derive_seed
from purify_engine.types import GuideNoise, Images, NoiseKey, Step

Target = tuple[Tensor, ...]

PIXEL_NOISE = 1  # stream of the seed that the pixel guide's own noise is derived from


class Guide(Protocol):
    """The two verbs of a guide, and whether it reads the noise prediction: if not, the networks may run side by side."""

    @property
    def reads_eps(self) -> bool: ...

    def target(self, x: Images) -> Target:
        """What to stay near, read off the un-noised `x` in [-1, 1]."""
        ...

    def grad(
        self, x_t: Images, eps: Images | None, target: Target, plan: ReversePlan, step: Step, noise: NoiseKey
    ) -> Images | None:
        """grad G at `x_t`, unscaled; differentiable once more where autograd records. None: no pull.

        `eps` may be None where the guide does not read it.
        """
        ...


class NoGuide:
    """Plain diffusion purification (Nie et al. 2022, DiffPure)."""

    reads_eps = False

    def target(self, x: Images) -> Target:
        return ()

    def no_pull(
        self, x_t: Images, eps: Images | None, target: Target, plan: ReversePlan, step: Step, noise: NoiseKey
    ) -> None:
        return None

    grad = no_pull  # not a function of that name: AutoAttack takes a call of one for a derivative inside the defence


class PixelGuide:
    """Distance to the equally noised input (Wang et al. 2022, GDMP; docs/math.md E12), its gradient by hand.

    Per image, where the published code averages over the batch and so guides less the larger the batch.
    """

    reads_eps = False

    def target(self, x: Images) -> Target:
        return (x,)

    def derive(self, noise: NoiseKey) -> GuideNoise | None:
        """This guide's own noise: derived once a call, since it takes more than a hundred tiny kernels. None: in every step."""
        return GuideNoise(derive_seed(noise.key, PIXEL_NOISE), noise.ids) if switches.is_on("pixel_key") else None

    def grad(
        self, x_t: Images, eps: Images | None, target: Target, plan: ReversePlan, step: Step, noise: NoiseKey
    ) -> Images:
        key = noise.key if isinstance(noise, GuideNoise) else derive_seed(noise.key, PIXEL_NOISE)
        # At least as precise as `q_sample` computes and as the target is, whatever the networks' precision.
        noised_in = torch.promote_types(torch.promote_types(x_t.dtype, target[0].dtype), torch.float32)
        target_t, _ = ops.q_sample(target[0].to(noised_in), plan.marginal(step), step, key, noise.ids)
        return guidance.pixel_gradient(x_t, target_t)


class AdversarialGuide(nn.Module):
    """Semantics of the input, seen by an adversarially trained network (Lin et al. 2024; docs/math.md E10, E11).

    G(x_t) = w_y log p(y | r(x_t)) - w_d ||h(r(x_t)) - h(x')||^2 with h the penultimate features and r(x) = (x + 1) / 2.
    `straight_through` keeps the hard pseudo-label's value and gives it the gradient of the soft one: an attack's view.
    """

    def __init__(self, network: GuideNetwork, config: GuidanceConfig, *, straight_through: bool = False) -> None:
        super().__init__()
        self.network = network
        self.config = config
        self.straight_through = straight_through
        self._is_fast = isinstance(network, FastGuideNetwork)

    def target(self, x: Images) -> Target:
        """(features [B, F], label distribution [B, K]) of the un-noised input."""
        features, logits = self._seen(x)
        return features, self._label(logits)

    def _seen(self, x: Images) -> tuple[Tensor, Tensor]:
        """(features, logits) of model-space images, in the precision of the network."""
        return self._frozen().features_and_logits((self._read(x) + 1) / 2)

    def _frozen(self) -> Any:
        """The network by its fastest way: with what is fixed computed beforehand, where it knows how."""
        return cast(FastGuideNetwork, self.network).frozen() if self._is_fast else self.network

    def _read(self, x: Images) -> Images:
        return x.to(first_parameter(cast(nn.Module, self.network)).dtype)

    def _label(self, logits: Tensor) -> Tensor:
        soft = logits.softmax(dim=1)
        if self.config.pseudo_label == "soft":
            return soft
        hard = guidance.one_hot(logits.argmax(dim=1), logits)
        return hard + (soft - soft.detach()) if self.straight_through else hard

    @property
    def reads_eps(self) -> bool:
        return self.config.look_at == "x0"

    def grad(
        self, x_t: Images, eps: Images | None, target: Target, plan: ReversePlan, step: Step, noise: NoiseKey
    ) -> Images:
        if self.config.look_at == "xt" and not self.config.normalised:
            return self._pull(x_t, target)
        marginal = plan.marginal(step)
        if self.config.look_at == "xt":
            pull = self._pull(x_t, target)
        else:
            assert eps is not None
            pull = self._pull(guidance.tweedie(x_t, eps, marginal), target) / marginal[0].to(x_t.dtype)
        return guidance.normalise(pull, marginal, self.config.norm_eps) if self.config.normalised else pull

    def _pull(self, x: Images, target: Target) -> Images:
        if self._is_fast and switches.runs("guide_ends", target[0]) and _has_plain_head(self.network):
            return _gradient(lambda view, recorded: self._ends(view, target, recorded), x)
        return input_gradient(lambda view: self.objective(view, target), x)

    def _ends(self, x: Images, target: Target, recorded: bool) -> tuple[Images, Images]:
        """The last maps of the network, and the gradient of G to them, written out: few passes over few numbers."""
        network, config = self._frozen(), self.config
        maps = network.last_maps(self._read(x))
        wanted_features, label = target
        pixels = maps.shape[2:].numel()
        weights = config.label_weight / pixels, config.latent_weight / pixels
        with torch.set_grad_enabled(recorded):
            features, logits = network.read_off(maps)
            hard = None if config.pseudo_label == "none" else label
            grad = guidance.objective_gradient(features, logits, wanted_features, hard, network.head.weight, weights)
            return maps, grad[:, :, None, None].expand_as(maps)

    def objective(self, x: Images, target: Target) -> Tensor:
        """G summed over the batch, at model-space images of any precision: the network reads them in its own."""
        features, logits = self._seen(x)
        wanted_features, wanted_label = target
        value = self.config.latent_weight * guidance.latent_objective(features, wanted_features)
        if self.config.pseudo_label != "none":
            value = value + self.config.label_weight * guidance.label_objective(logits, wanted_label)
        return value


def _has_plain_head(network: Any) -> bool:
    """Whether the weight of its head says all that the head does: it is no adapter around one, and no hook is on it."""
    head = network.head
    return type(head) is nn.Linear and not head._forward_hooks and not head._forward_pre_hooks


def input_gradient(objective: Callable[[Images], Tensor], x: Images) -> Images:
    """Gradient of a scalar objective at `x`, recorded for a further derivative exactly where autograd records.

    Never wrap this in torch.compile: it would drop the second-order term in silence, and robustness would look better than it is.
    """
    return _gradient(lambda view, recorded: (objective(view), None), x)


def _gradient(function: Callable[[Images, bool], tuple[Tensor, Tensor | None]], x: Images) -> Images:
    """The same of what `function` gives, being told whether that is recorded: a tensor, and the objective's gradient to it."""
    recorded = torch.is_grad_enabled()
    with torch.enable_grad():
        view = x.view_as(x) if recorded and x.requires_grad else x.detach().requires_grad_()
        of, weights = function(view, recorded)
        (grad,) = torch.autograd.grad(of, view, weights, create_graph=recorded)
    return grad


def make_guide(network: GuideNetwork | None, guidance: GuidanceConfig, straight_through: bool) -> Guide:
    """The guide that a configuration asks for, which sees `network` where it needs one."""
    if guidance.scale == 0 or guidance.kind == "none":
        return NoGuide()
    if guidance.kind == "pixel":
        return PixelGuide()
    assert network is not None
    return AdversarialGuide(network, guidance, straight_through=straight_through)
