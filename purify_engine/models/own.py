"""Networks of one's own in a purifier: what it asks of a denoiser and of a guide, and adapters (docs/own_networks.md).

    denoiser = OwnDenoiser(unet, image_size=32)  # eps = unet(x_t, t)
    guide = OwnGuide(resnet, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))  # logits = resnet(images)
    purifier = GuidedPurifier(denoiser, guide, config)

A purifier freezes its networks, runs them in evaluation mode, and may record a step to replay it: what a module puts out must
depend on the tensors that it is given and on its weights alone.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor, nn

from purify_engine.config import OwnDenoiserConfig, OwnGuideConfig, OwnPrediction, TimeInput, require
from purify_engine.devices import device_of
from purify_engine.models.classifiers import Classifier
from purify_engine.models.denoiser import EpsModel, HasTimes, NetworkFacts
from purify_engine.types import Features, Images, Logits, Step, Timesteps

Numbers = tuple[float, ...]

# How purifiers hold what fits the protocols below: as the classes of ours that do.
AnyDenoiser: TypeAlias = EpsModel
AnyGuide: TypeAlias = "Classifier | OwnGuide"


@runtime_checkable
class DenoisingNetwork(Protocol):
    """What a purifier asks of its denoiser, an nn.Module with parameters: `Denoiser` and `OwnDenoiser` fit.

    One that keeps something for a plan may have `prepare(plan)`, which is called before a recording that reads it is replayed.
    """

    @property
    def config(self) -> NetworkFacts: ...

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]: ...

    @property
    def reads_x_t(self) -> bool:
        """Whether it is given x_t itself, in float32 at least, in place of x_net in its own precision."""
        ...

    def __call__(self, x_net: Images, plan: HasTimes, step: Step) -> Images | tuple[Images, Images]:
        """eps [B, C, H, W] at plan.times[step]; (eps, v) where `plan.learns_variance`.

        `step` is an int64 scalar on the device. What depends on it is gathered there, as by
        `plan.times.index_select(0, step.reshape(1))`, and never read back to Python, which would fix it in a recording.
        """
        ...


@runtime_checkable
class GuideNetwork(Protocol):
    """What adversarial guidance asks of its network, an nn.Module with parameters: `Classifier` and `OwnGuide` fit."""

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]: ...

    def features_and_logits(self, images: Images) -> tuple[Features, Logits]:
        """Penultimate features [B, F] and logits [B, K] of images [B, C, H, W] near [0, 1], differentiable twice."""
        ...


@runtime_checkable
class FastGuideNetwork(GuideNetwork, Protocol):
    """One with shorter ways, as `Classifier`: its features are the mean of its last maps, its logits are linear in them."""

    def frozen(self) -> FastGuideNetwork:
        """The same function, with what its frozen weights fix computed beforehand."""
        ...

    @property
    def head(self) -> nn.Linear: ...

    def last_maps(self, x: Images) -> Images:
        """[B, F, h, w] of images in [-1, 1]."""
        ...

    def read_off(self, maps: Images) -> tuple[Features, Logits]: ...


def facts_of(denoiser: object, guide: object) -> NetworkFacts:
    """What the denoiser says of itself; TypeError, in one line that names the adapter, where it or the guide is of no use."""
    if not (isinstance(denoiser, nn.Module) and isinstance(denoiser, DenoisingNetwork)):
        wanted = "a Denoiser(unet), or for a network of your own OwnDenoiser(module, image_size=...)"
        raise TypeError(f"denoiser must be {wanted} (docs/own_networks.md), got {_named(denoiser)}")
    if guide is not None and not (isinstance(guide, nn.Module) and isinstance(guide, GuideNetwork)):
        wanted = "a Classifier, None, or for a classifier of your own OwnGuide(module)"
        raise TypeError(f"guide must be {wanted} (docs/own_networks.md), got {_named(guide)}")
    return denoiser.config


class OwnDenoiser(EpsModel):
    """Any diffusion model as a purifier's denoiser: `module(x_t [B, C, H, W], t [B])` -> eps, `.sample` of eps, or a tuple.

    denoiser = OwnDenoiser(unet, image_size=32, takes="index")

    image_size and all others: fields of `OwnDenoiserConfig`, which says what they mean. x_t is in the precision of the module's
    parameters, t on the same device, int64 or float32. TypeError or ValueError, in one line, where the module is none or has no
    parameters, and in a call where it puts out another shape, or what has no gradient in x_t.
    """

    config: OwnDenoiserConfig

    def __init__(
        self,
        module: nn.Module,
        *,
        image_size: int,
        in_channels: int = 3,
        num_halvings: int = 0,
        predicts: OwnPrediction = "eps",
        takes: TimeInput = "index",
        num_timesteps: int = 1000,
        learned_variance: bool = False,
    ) -> None:
        _require_module(module)
        super().__init__(
            OwnDenoiserConfig(
                network=_named(module),
                image_size=image_size,
                in_channels=in_channels,
                num_halvings=num_halvings,
                predicts=predicts,
                takes=takes,
                num_timesteps=num_timesteps,
                learned_variance=learned_variance,
            )
        )
        self.module = module

    @classmethod
    def of(cls, module: nn.Module, config: OwnDenoiserConfig) -> OwnDenoiser:
        """The adapter that a configuration describes."""
        return cls(module, **_but_its_name(config))

    def _asked(self, x_net: Images, times: Timesteps, step: Step) -> Images:
        t = times.index_select(0, step.reshape(1))
        if self.config.takes == "index":
            t = t.to(torch.int64)
        else:
            t = (t + 1) / self.config.num_timesteps if self.config.takes == "fraction" else t
            t = t.to(torch.promote_types(x_net.dtype, torch.float32))  # 16 bits do not tell 999 from 1000
        out = _tensor_of(self.module(x_net, t.repeat(len(x_net))), "sample", "module(x_t, t)")
        wanted = [len(x_net), self.config.in_channels * (2 if self.config.learned_variance else 1), *x_net.shape[2:]]
        require(list(out.shape) == wanted, "module(x_t, t)", f"{wanted} for x_t {list(x_net.shape)}", list(out.shape))
        _require_differentiable(out, x_net, "module(x_t, t)")
        return out


class OwnGuide(nn.Module):
    """Any classifier as a purifier's guide: `module(images [B, C, H, W])` -> logits [B, K], `.logits` of them, or a tuple.

    guide = OwnGuide(torchvision.models.resnet18(num_classes=10))

    features: the layer whose output, flattened, the penultimate features are, by its name in the module; None: what the last
    nn.Linear that runs reads. mean, std: of the normalisation before the module; None where it does its own. num_classes: logits
    it must put out; None: any number. TypeError or ValueError, in one line, where the module is none, has no parameters or no
    such layer, or was made in inference mode; and in a call where that layer does not run, or what comes out has no gradient in
    the images.

    Hooks on these layers hand on what passes them, to the thread that called this guide and to no other.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        module: nn.Module,
        *,
        features: str | None = None,
        mean: Numbers | None = None,
        std: Numbers | None = None,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        _require_module(module)
        is_inference = torch.is_inference_mode_enabled() or any(weight.is_inference() for weight in module.parameters())
        wanted = "made outside torch.inference_mode(), since guidance needs autograd"
        require(not is_inference, "module", wanted, "inference tensors")
        self.config = OwnGuideConfig(network=_named(module), features=features, mean=mean, std=std, num_classes=num_classes)
        self.module = module
        for name, numbers in (("mean", self.config.mean), ("std", self.config.std)):
            if numbers is not None:
                self.register_buffer(name, torch.tensor(numbers, device=device_of(module))[:, None, None], persistent=False)
        self._passing = _Passing()
        layers = dict(module.named_modules())
        if features is None:
            linear = [layer for layer in layers.values() if isinstance(layer, nn.Linear)]
            require(bool(linear), "features", "the name of a layer of module, which has no nn.Linear", features)
            for layer in linear:
                layer.register_forward_pre_hook(self._passing.read)
        else:
            known = f"the name of a layer of module, as {', '.join(list(layers)[1:][-3:])}"
            require(features in layers, "features", known, features)
            layers[features].register_forward_hook(self._passing.written)

    @classmethod
    def of(cls, module: nn.Module, config: OwnGuideConfig) -> OwnGuide:
        """The adapter that a configuration describes."""
        return cls(module, **_but_its_name(config))

    def forward(self, images: Images) -> Logits:
        return self.features_and_logits(images)[1]

    def features_and_logits(self, images: Images) -> tuple[Features, Logits]:
        """The penultimate features [B, F] and the logits [B, K] of images in [0, 1]."""
        mean, channels = self.config.mean, images.shape[1]
        require(mean is None or len(mean) in (1, channels), "mean", f"for 1 channel, or the images' {channels}", mean)
        x = images if mean is None else (images - self.mean) / self.std
        with self._passing.told() as passing:
            logits = _tensor_of(self.module(x), "logits", "module(images)")
            features = passing.seen
        classes = self.config.num_classes or logits.shape[-1]
        require(list(logits.shape) == [len(images), classes], "module(images)", f"[{len(images)}, {classes}]", list(logits.shape))
        runs = isinstance(features, Tensor) and features.dim() > 0 and len(features) == len(images)
        require(runs, "features", "the name of a layer that runs once for all images", self.config.features)
        assert features is not None
        _require_differentiable(logits, images, "module(images)")
        _require_differentiable(features, images, "features")
        return features.flatten(1), logits


class _Passing(threading.local):
    """What passes a layer in this thread, where it is asked for. A copy or a pickle has seen nothing."""

    is_told = False
    seen: Tensor | None = None

    def __reduce__(self) -> tuple[type[_Passing], tuple[()]]:
        return _Passing, ()

    @contextmanager
    def told(self) -> Iterator[_Passing]:
        self.is_told = True
        try:
            yield self
        finally:
            self.is_told, self.seen = False, None

    def read(self, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        if self.is_told:
            self.seen = inputs[0] if inputs else None

    def written(self, layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if self.is_told:
            self.seen = output


def _but_its_name(config: OwnDenoiserConfig | OwnGuideConfig) -> dict[str, Any]:
    return {name: value for name, value in dataclasses.asdict(config).items() if name != "network"}


def _require_module(module: object) -> None:
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be an nn.Module, got {_named(module)}")
    has_parameters = next(module.parameters(), None) is not None
    wanted = "one with parameters, which say on what device and in what precision it computes"
    require(has_parameters, "module", wanted, _named(module))


def _require_differentiable(out: Tensor, x: Images, what: str) -> None:
    """A module under no_grad, or that detaches what it reads, would be taken for a constant: a gradient wrong in silence."""
    if torch.is_grad_enabled() and x.requires_grad and not out.requires_grad:
        raise ValueError(f"{what} must have a gradient in the images, got none; call the network without no_grad and detach")


def _tensor_of(out: Any, attribute: str, what: str) -> Tensor:
    """The tensor that a network puts out: itself, the attribute of an object, or the first of a tuple."""
    found = out if isinstance(out, Tensor) else getattr(out, attribute, None)
    if found is None and isinstance(out, tuple) and out:
        found = out[0]
    if not isinstance(found, Tensor):
        wanted = f"a tensor, an object with .{attribute}, or a tuple that begins with one"
        raise TypeError(f"{what} must be {wanted}, got {_named(out)}")
    return found


def _named(thing: object) -> str:
    return type(thing).__name__
