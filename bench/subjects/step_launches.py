"""The launches of one guided step, counted on tensors without numbers: our kernels, the libraries' and PyTorch's. Needs no GPU.

What is counted is what PyTorch and our ops ask for. A library may launch more of its own accord, which a profile on a GPU shows:
cuDNN pads channels, changes layouts and clears sums; cuBLAS may add up a product's parts in a second kernel.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bench.subjects.kernel_groups import group_of
from bench.subjects.launches import instead_of_launches
from purify_engine.benchmark.networks import GUIDES, NETWORKS
from purify_engine.config import ClassifierConfig, GuidanceConfig, ScheduleConfig, UNetConfig
from purify_engine.engine.guide import AdversarialGuide
from purify_engine.engine.plan import write_plan
from purify_engine.engine.process import ReverseProcess
from purify_engine.models import Classifier, Denoiser, UNet
from purify_engine.ops import OPS, switches
from purify_engine.reference.schedules import make_schedule
from purify_engine.types import Images, NoiseKey

UNET, GUIDE, UPDATE = "U-Net", "guide", "update"  # the parts of a step

META = torch.device("meta")
CHANNELS_LAST = torch.channels_last
PLAN = write_plan(make_schedule(ScheduleConfig()), 150, 5, guidance_scale=1.0)
ON = {name: switch.default for name, switch in switches.SWITCHES.items()}  # all that are on where nothing is said
OFF = dict.fromkeys(switches.SWITCHES, False)
STATES = {"all on": ON, "all off": OFF, **{f"{name} {'off' if on else 'on'}": {**ON, name: not on} for name, on in ON.items()}}

CASES = (
    ("ddpm-cifar10", "resnet18", 64), ("ddpm-cifar10", "resnet18", 1), ("ddpm-cifar10", "wrn-28-10", 64),
    ("ddpmpp-cifar10", "resnet18", 64), ("adm-imagenet256", "resnet18", 8),
)  # fmt: skip

# Beside views: they make tensors and launch nothing, or answer a question.
LAUNCH_NOTHING = {
    "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view", "_reshape_alias", "promote_types",
}  # fmt: skip
WHOLE = {"upsample_nearest2d", "scaled_dot_product_attention"}  # made of others, yet one kernel on a GPU
FILLED_FIRST = {"constant_pad_nd", "slice_backward", "select_backward"}  # a fill, then a copy into it

One = TypeVar("One")
Other = TypeVar("Other")


class Launches(TorchDispatchMode):
    """Counts launches by the name of a kernel of ours, or of PyTorch's operator; and apart from them, calls of our ops.

    Stands for cuDNN as well, of which the meta device knows nothing: its convolutions are channels_last.
    """

    def __init__(self) -> None:
        super().__init__()
        self.launched, self.ops = Counter[str](), Counter[str]()

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        namespace, name = function.namespace, function.overloadpacket.__name__
        if namespace == "purify":
            self.ops[name] += 1
            with self:  # what it is made of
                return OPS[name](*args, **(kwargs or {}))
        if name not in WHOLE:
            with self:  # below autograd an operator that is made of others has not been taken apart yet
                result = function.decompose(*args, **(kwargs or {}))
            if result is not NotImplemented:
                return result
        self.launched.update(_launches(function, name, args))
        if name.startswith("cudnn_convolution"):
            return _channels_last(_by_cudnn(name, args))
        result = function(*args, **(kwargs or {}))
        if name == "scaled_dot_product_attention":  # [B, tokens, heads, head_dim] in memory
            return result.transpose(1, 2).contiguous().transpose(1, 2)
        return _channels_last(result) if name.startswith("convolution") else result

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Within, what runs on the meta device is counted, the ways that are switched on being taken."""
        module = importlib.import_module("purify_engine.ops.conv_relu")
        as_on_a_gpu = mock.patch.multiple(module, _has_cudnn=lambda x: True, _has_triton=lambda x: True)
        ours = instead_of_launches(META, lambda launch: self.launched.update([launch.kernel.__name__]))
        with switches.anywhere(), as_on_a_gpu, ours, self:
            yield


def _launches(function: Any, name: str, args: tuple[Any, ...]) -> list[str]:
    """What a call of one of PyTorch's operators launches on a GPU, by names of which each has a group."""
    named = f"{function.namespace}::{name}"
    if function.is_view or name in LAUNCH_NOTHING:
        return []
    if name == "convolution":  # cuDNN's adds no bias
        bias, transposed = args[2], args[6]
        return [f"{named}, transposed, by dgrad" if transposed else named, *(["aten::add of a bias"] if bias is not None else [])]
    if name == "convolution_backward":
        return [f"{named} to the {to}" for to, wanted in zip(("input", "weight", "bias"), args[-1], strict=True) if wanted]
    if name in ("add", "add_") and isinstance(args[1], Tensor) and args[0].shape == args[1].shape:
        return [f"{named} of whole tensors"]
    return ["aten::fill_", named] if name in FILLED_FIRST else [named]


def _by_cudnn(name: str, args: tuple[Any, ...]) -> Tensor:
    """The shape of its convolution with a ReLU."""
    x, weight, *others = args
    stride, padding, dilation, groups = others[-4:]
    return torch.convolution(x, weight, None, stride, padding, dilation, False, [0, 0], groups)


def _channels_last(result: Any) -> Any:
    if isinstance(result, tuple):
        return tuple(_channels_last(part) for part in result)
    return result.contiguous(memory_format=CHANNELS_LAST) if isinstance(result, Tensor) and result.dim() == 4 else result


class Subject(NamedTuple):
    """A reverse process in bfloat16 and channels_last on the meta device, and the images that it purifies."""

    process: ReverseProcess
    x_t: Images
    x_net: Images

    @classmethod
    def of(cls, network: UNetConfig, guide: ClassifierConfig, batch: int) -> Subject:
        shape = batch, network.in_channels, network.image_size, network.image_size
        with META:
            parts = UNet(network), Classifier(guide)
            unet, classifier = (part.eval().to(torch.bfloat16, memory_format=CHANNELS_LAST) for part in parts)
            x_t = torch.empty(shape)
            noise = NoiseKey(torch.empty((), dtype=torch.int64), torch.empty(batch, dtype=torch.int64))
        denoiser = Denoiser(unet.requires_grad_(False))
        pull = AdversarialGuide(classifier.requires_grad_(False), GuidanceConfig(scale=1.0))
        plan = PLAN.to(META, torch.bfloat16)
        process = ReverseProcess(plan, denoiser, pull, noise)
        return cls(process, x_t, process.for_networks(x_t))

    @torch.no_grad()
    def step(self, state: Mapping[str, bool] = ON) -> dict[str, Counter[str]]:
        """The launches of one step by its parts, with the switches in this state. What is packed or kept once is not in them."""
        process, step = self.process, self.process.plan.steps[0]

        def both(one: Callable[[], One], other: Callable[[], Other]) -> tuple[One, Other]:
            eps = one()
            marks.append(seen.launched.copy())
            grad = other()
            marks.append(seen.launched.copy())
            return eps, grad

        with switches.switched(**state):
            with Launches().counting():
                target = process.guide.target(self.x_net)
            for _ in range(2):  # the first time filters are packed
                seen, marks = Launches(), list[Counter[str]]()
                with seen.counting():
                    process.step(self.x_t, self.x_net, target, step, both)
        return {UNET: marks[0], GUIDE: marks[1] - marks[0], UPDATE: seen.launched - marks[1]}


def lines(case: tuple[str, str, int], states: Iterable[str] = STATES) -> list[dict[str, Any]]:
    """A network's and a guide's launches a step on a batch: a line for each state of the switches and part of the step."""
    network, guide, batch = case
    subject, found = Subject.of(NETWORKS[network], GUIDES[guide], batch), []
    for state in states:
        for part, launched in subject.step(STATES[state]).items():
            groups = Counter[str]()
            for kernel, count in launched.items():
                groups[group_of(kernel)] += count
            about = {"kind": "launches", "network": network, "guide": guide, "batch": batch, "part": part, "state": state}
            found.append({**about, "launches": launched.total(), "groups": dict(sorted(groups.items()))})
    return found
