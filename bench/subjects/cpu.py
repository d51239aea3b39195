"""What `python -m bench cpu` times: networks forward, a guide's gradient, guided steps, single convolutions.

A subject knows its variants, the float64 truth that all of them are held to, and the FLOPs of direct convolution, which are
what a rate counts whatever algorithm runs: an algorithm that multiplies less may pass the peak.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from bench.core.clocks import ColdClock
from bench.core.comparison import relative_error
from bench.opponents import cpu_runtimes
from bench.opponents.cpu_runtimes import NO_BACKWARD, Call
from bench.subjects import purification
from bench.subjects.smooth_images import smoothest
from purify_engine import ops  # noqa: F401  (registers torch.ops.purify)
from purify_engine.benchmark.eager_baseline import BASELINES, EagerPurifier, gaussian
from purify_engine.benchmark.harness import wall_clock
from purify_engine.benchmark.networks import GUIDES, NETWORKS, TOY_GUIDE, TOY_NETWORKS, random_purifier, with_random_weights
from purify_engine.benchmark.plain_unet import PlainUNet
from purify_engine.engine.cpu_capture import CpuCapture
from purify_engine.engine.guide import AdversarialGuide
from purify_engine.models import Classifier, UNet
from purify_engine.purifier import GuidedPurifier
from purify_engine.types import NoiseKey

HONEST = "eager fp32"  # its error is float32's own
OURS = 4  # times as far from float64 as eager PyTorch we may be
ROUNDING = torch.finfo(torch.float32).eps
COMPARED = 2  # images of a batch that are computed in float64
GRADIENTS, CANDIDATES = 8, 400  # images at which a guide's gradient is, and among how many they are found
STEPS = 2  # of a purification that is timed


class Entry(NamedTuple):
    """What is timed, and what gives the result to compare: the same but for a purification, which is compared with given noise.

    images: how many of the truth's the result has, where it has not all.
    """

    call: Call
    result: Call
    images: int | None = None


@dataclass
class Subject:
    """`makers` build the variants; `truth` has the first images in float64; `absent` says which cannot take part, and why.

    slack: the relative change of the truth that one rounding of its input makes, where that is more than rounding.
    """

    makers: dict[str, Callable[[], Entry]]
    truth: Callable[[], Tensor]
    flops: int
    absent: dict[str, str] = field(default_factory=dict)
    per: int = 1  # steps in a call
    slack: Callable[[], float] = float
    clock: Callable[[Callable[[], object]], float] = wall_clock


@dataclass(frozen=True)
class Setting:
    """One row of the comparison. `threads` is what PyTorch is told, and through it all others."""

    part: str
    name: str
    batch: int
    pixels: int
    threads: int = 1

    def __str__(self) -> str:
        return f"{self.part} {self.name}, batch {self.batch}, {self.pixels} px, {self.threads} threads"


def subject(setting: Setting, *, toy: bool = False) -> Subject:
    """What a setting asks for; `toy` gives the same on the smallest networks."""
    network, _, guide = setting.name.partition(" + ")
    if setting.part == "unet":
        return unet(setting, toy=toy)
    if setting.part == "step":
        return steps(random_purifier(*_configs(network, guide, toy), purification.config(STEPS)), setting.batch)
    if setting.part == "layers":
        return layer(setting)
    name, _, gradient = setting.name.partition(", ")
    return guide_gradient(name, setting, toy=toy) if gradient else guide_forward(name, setting, toy=toy)


def unet(setting: Setting, *, toy: bool = False) -> Subject:
    """Noise prediction, the time embedding with it."""
    network = with_random_weights(UNet(TOY_NETWORKS["toy-ddpm"] if toy else NETWORKS[setting.name]))
    network.eval().requires_grad_(False)
    inputs = _images(setting), torch.full((setting.batch,), 50.0)
    return _forward(partial(network, *inputs), PlainUNet(network).eval(), inputs, toy=toy)


def guide_forward(name: str, setting: Setting, *, toy: bool = False) -> Subject:
    """Logits. Ours folds the batch norms away, as the engine does; the opponents that pack weights do so themselves."""
    network = with_random_weights(Classifier(TOY_GUIDE if toy else GUIDES[name]))
    network.eval().requires_grad_(False)
    (images,) = inputs = (_images(setting).sigmoid(),)
    return _forward(lambda: network.frozen()(images), network, inputs, toy=toy)


def _forward(ours: Call, plain: nn.Module, inputs: tuple[Tensor, ...], *, toy: bool) -> Subject:
    """A network without gradient: ours, and every peer on the same weights in plain torch.nn."""

    def maker(build: cpu_runtimes.Build) -> Callable[[], Entry]:
        return lambda: _same(build(plain, inputs))

    few, single = (tuple(value[:number] for value in inputs) for number in (COMPARED, 1))
    makers = {name: maker(build) for name, build in cpu_runtimes.networks(toy=toy).items()}
    work = _flops(partial(plain, *single)) * len(inputs[0])
    return Subject(makers | _ours(ours), lambda: _in_float64(plain, few), work)


def _ours(call: Call) -> dict[str, Callable[[], Entry]]:
    """The engine as a purifier runs it by default, from a recording, and step by step."""

    def recorded() -> Entry:
        out = call().clone()
        replay = CpuCapture()(lambda: _store(out, call()))
        replay(), replay()  # the second is recorded
        assert replay.calls is not None
        return _same(lambda: (replay(), out)[1])  # type: ignore[func-returns-value]

    return {"engine": recorded, "engine loop": lambda: _same(call)}


def _store(out: Tensor, result: Tensor) -> None:
    out.copy_(result)


def _in_float64(module: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    return copy.deepcopy(module).double()(*(value.double() for value in inputs))


def guide_gradient(name: str, setting: Setting, *, toy: bool = False) -> Subject:
    """d/dx of the guide's objective at noisy images, away from its ReLUs' corners. The purifier's U-Net is a toy, never run."""
    purifier = random_purifier(*_configs("", name, toy), purification.config(STEPS))
    number = 1 if toy else -(-GRADIENTS // setting.batch)
    chosen = _smooth(name, setting.pixels, number * setting.batch, toy).split(setting.batch)
    draws = [(_images(setting, 2 * n + 1), noisy) for n, noisy in enumerate(chosen)]
    few, noisy = (torch.cat(images)[: COMPARED if toy else GRADIENTS].double() for images in zip(*draws, strict=True))
    makers: dict[str, Callable[[], Entry]] = {
        name: lambda how=how: _over(_pulls(purifier, draws, **how)) for name, how in EAGER.items()
    }
    makers["torch.compile"] = lambda: _over(
        _pulls(purifier, draws[:1], channels_last=True, compiled=True, toy=toy), min(setting.batch, len(few))
    )
    makers |= _our_pulls(purifier, draws)

    def truth() -> Tensor:
        return _pulls(purifier, [(few, noisy)], dtype=torch.float64)[0]()

    work = _flops(_pulls(purifier, [(draws[0][0][:1], draws[0][1][:1])])[0]) * setting.batch
    absent = dict.fromkeys(("ONNX Runtime", "OpenVINO"), NO_BACKWARD)
    return Subject(makers, truth, work, absent)


@cache
def _smooth(name: str, pixels: int, number: int, toy: bool) -> Tensor:
    """Noisy images that keep a guide's ReLUs far from zero."""
    guide: Any = random_purifier(*_configs("", name, toy), purification.config(STEPS)).guide
    candidates = _images(Setting("guide", name, number if toy else CANDIDATES, pixels, 1), 2)
    return candidates[smoothest(guide, (candidates + 1) / 2, number)]


EAGER: dict[str, dict[str, Any]] = {HONEST: {}, "eager channels_last": {"channels_last": True}}
Draws = list[tuple[Tensor, Tensor]]  # images, and what is noisy of them


def _pulls(purifier: GuidedPurifier, draws: Draws, *, compiled: bool = False, toy: bool = False, **how: Any) -> list[Call]:
    """The guide's gradient by autograd on the classifier, for each draw."""
    eager = EagerPurifier(purifier, **how)
    if compiled:
        eager.objective = cpu_runtimes.traced(eager.objective, toy=toy)  # type: ignore[method-assign]

    def pull(x: Tensor, x_t: Tensor) -> Call:
        target, row = eager.target(x), eager.row(0, x_t)
        return lambda: eager.pull(x_t, x_t, target, row, gaussian, 0)  # type: ignore[return-value]

    return [pull(*draw) for draw in draws]


def _over(calls: list[Call], images: int | None = None) -> Entry:
    """The first is timed, all are compared."""
    return Entry(calls[0], lambda: torch.cat([call() for call in calls]), images)


def _our_pulls(purifier: GuidedPurifier, draws: Draws) -> dict[str, Callable[[], Entry]]:
    """The engine's, from tensors that are loaded with one draw after the other: a recording reads where it was made."""
    assert purifier.guide is not None
    own = AdversarialGuide(purifier.guide, purifier.config.guidance)
    plan, noise = purifier.plan(), NoiseKey(purifier.seed, torch.arange(len(draws[0][0])))
    held = [tensor.clone() for tensor in (draws[0][1], *own.target(draws[0][0]))]

    def load(x: Tensor, x_t: Tensor) -> None:
        for mine, given in zip(held, (x_t, *own.target(x)), strict=True):
            mine.copy_(given)

    def variant(make: Callable[[], Entry]) -> Entry:
        call = make().call

        def after(draw: tuple[Tensor, Tensor]) -> Tensor:
            load(*draw)
            return call().clone()

        return Entry(call, _over([partial(after, draw) for draw in draws]).result)

    ours = _ours(lambda: own.grad(held[0], None, tuple(held[1:]), plan, plan.steps[0], noise))
    return {name: partial(variant, make) for name, make in ours.items()}


def steps(purifier: GuidedPurifier, batch: int) -> Subject:
    """Whole purifications of a few guided steps, with one variant more: eager PyTorch in the layout that suits a CPU."""
    images = purification.images_for(purifier, batch)
    comparison = purification.Comparison(purifier, images)
    makers: dict[str, Any] = {name: make for name, make in BASELINES.items() if "bf16" not in name}
    makers["eager channels_last"] = partial(EagerPurifier, channels_last=True)
    makers["engine"] = partial(purification.engine, execution="graph")
    makers["engine loop"] = partial(purification.engine, execution="loop")

    def built(make: Any) -> Entry:
        variant = make(purifier)
        short = comparison.shortened(variant)
        return Entry(partial(variant, images), lambda: comparison.purified(short, images))

    def truth(seen: Tensor) -> Tensor:
        return comparison.purified(EagerPurifier(comparison.short, torch.float64), seen)

    entries = {name: partial(built, make) for name, make in makers.items()}
    work = purification.step_flops(purifier) * STEPS * batch
    slack = lambda: _slack(truth, comparison.few.double(), comparison.truth)  # noqa: E731
    return Subject(entries, lambda: comparison.truth, work, per=STEPS, slack=slack)


def _slack(function: Callable[[Tensor], Tensor], images: Tensor, truth: Tensor) -> float:
    """How far a function in float64 goes, relatively, when every pixel moves by one rounding of float32."""
    return max(relative_error(function(images * (1 + way * ROUNDING)), truth) for way in (-1, 1))


def layer(setting: Setting) -> Subject:
    """A 3x3 convolution with its weights cold and its image warm, as a network larger than the caches finds them."""
    channels, out_channels = map(int, setting.name.split("->"))
    generator = torch.Generator().manual_seed(0)
    shape = setting.batch, channels, setting.pixels, setting.pixels
    x = torch.randn(shape, generator=generator).to(memory_format=torch.channels_last)
    weight = torch.randn(out_channels, channels, 3, 3, generator=generator) / (9 * channels) ** 0.5
    bias = torch.randn(out_channels, generator=generator)
    channels_last = weight.to(memory_format=torch.channels_last)
    makers: dict[str, Callable[[], Entry]] = {
        HONEST: lambda: _same(lambda: F.conv2d(x, channels_last, bias, padding=1)),
        "oneDNN prepacked": lambda: _same(cpu_runtimes.prepacked(x, weight, bias)),
        "engine": lambda: _same(lambda: torch.ops.purify.conv3x3(x, weight, bias)),
    }
    few = x[:COMPARED].double()
    work = 2 * 9 * channels * out_channels * setting.pixels**2 * setting.batch
    truth = lambda: F.conv2d(few, weight.double(), bias.double(), padding=1)  # noqa: E731
    return Subject(makers, truth, work, clock=ColdClock(x))


def _same(call: Call) -> Entry:
    return Entry(call, call)


def _images(setting: Setting, seed: int = 1) -> Tensor:
    return torch.randn(setting.batch, 3, setting.pixels, setting.pixels, generator=torch.Generator().manual_seed(seed))


def _configs(network: str, guide: str, toy: bool) -> tuple[Any, Any]:
    """Of a network and a guide; a toy for what is not named, and for all where `toy`."""
    known = NETWORKS.get(network, TOY_NETWORKS["toy-ddpm"])
    return (TOY_NETWORKS["toy-ddpm"], TOY_GUIDE) if toy else (known, GUIDES[guide])


def _flops(call: Call) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call()
    return counter.get_total_flops()
