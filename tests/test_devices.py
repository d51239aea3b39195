"""Every tensor is made where it is used: not on the CPU beside networks elsewhere, nor on the default device beside CPU tensors.

The device here is meta, whose tensors have no values: one that is on the wrong side of a computation raises on any machine.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import math
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from purify_engine import GuidanceConfig, GuidedPurifier, PurifierConfig, ops
from purify_engine.config import AttackConfig, ClassifierTraining, DiffusionTraining, Perturbation, TradesTraining
from purify_engine.engine.plan import make_plan
from purify_engine.evaluation.attacks import attack
from purify_engine.evaluation.defences import Defence
from purify_engine.evaluation.self_test import gradient_self_test
from purify_engine.models import Classifier, Denoiser, UNet
from purify_engine.ops import OPS
from purify_engine.testing.cases import cases
from purify_engine.training.classifier import train_classifier
from purify_engine.training.diffusion import train_diffusion
from purify_engine.training.loop import MovingAverage
from purify_engine.training.trades import train_trades
from tests.engine.test_replay import GUIDE, UNET, images, networks

PACKAGE = Path(__file__).parent.parent / "purify_engine"
FACTORIES = {
    "arange", "as_tensor", "asarray", "empty", "empty_strided", "eye", "full", "linspace", "logspace", "normal", "ones", "rand",
    "randint", "randn", "randperm", "range", "scalar_tensor", "tensor", "tril_indices", "triu_indices", "zeros",
}  # fmt: skip
# A network is made on the default device, as all of PyTorch's are, and moved as a whole: its own parameters and constants.
NETWORKS_OWN = {
    ("models/blocks.py", "torch.ones(channels)"),
    ("models/blocks.py", "torch.zeros(channels)"),
    ("models/classifiers.py", "torch.tensor(config.mean)"),
    ("models/classifiers.py", "torch.tensor(config.std)"),
}
META = torch.device("meta")
KINDS = ["none", "pixel", "adversarial", "Tweedie"]
CASES = [
    [case for case in cases(op) if case.layout == layout and case.dtype == torch.float32 and math.prod(case.shape)][-1:]
    for op in OPS
    for layout in ("contiguous", "channels_last")
]
CASES = [case for found in CASES for case in found]
MODES = ["straight_through", "detached_guidance", "surrogate", "bpda", "blind"]
WAYS = [*((kind, "exact") for kind in KINDS), *(("adversarial", mode) for mode in MODES)]


def test_whatever_makes_a_tensor_says_on_which_device():
    paths = [path for path in PACKAGE.rglob("*.py") if "kernels" not in path.parts]
    silent = {(str(path.relative_to(PACKAGE)), call) for path in paths for call in calls_without_a_device(path.read_text())}
    assert silent == NETWORKS_OWN


def calls_without_a_device(source):
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in FACTORIES:
            of_torch = isinstance(node.func.value, ast.Name) and node.func.value.id == "torch"
            if of_torch and "device" not in {keyword.arg for keyword in node.keywords}:
                yield ast.unparse(node)


def test_a_call_without_a_device_is_found():
    source = "x = torch.zeros(3)\ny = torch.zeros(3, device=x.device)\nz = torch.zeros_like(x)\nn = np.zeros(3)"
    assert list(calls_without_a_device(source)) == ["torch.zeros(3)"]


# Networks on another device


class Elsewhere(TorchDispatchMode):
    """Notes every operation that reads or makes a tensor that is not on meta."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if devices_of((args, kwargs, result)) - {"meta"}:
            self.found.append(str(func))
        return result


def devices_of(values):
    return {leaf.device.type for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)}


def tensors_held(value, seen):
    """All tensors that an object holds, in whatever it holds."""
    if id(value) in seen or isinstance(value, (type, str, bytes, int, float, torch.device, torch.dtype)):
        return
    seen[id(value)] = value
    if isinstance(value, torch.Tensor):
        yield value
    elif hasattr(value, "items"):
        for pair in value.items():
            yield from tensors_held(pair, seen)
    elif isinstance(value, (tuple, list, set, frozenset)):
        for each in value:
            yield from tensors_held(each, seen)
    else:
        yield from tensors_held(getattr(value, "__dict__", {}), seen)


def held_on(value):
    return devices_of(list(tensors_held(value, {})))


def guided(kind, **options):
    guidance = {"Tweedie": {"look_at": "x0", "normalised": True}, "none": {"kind": "none"}, "pixel": {"kind": "pixel"}}
    return PurifierConfig(t_star=30, num_steps=2, guidance=GuidanceConfig(scale=1.0, **guidance.get(kind, {})), **options)


def moved(config):
    return GuidedPurifier(*networks(), config).to(META)


def given_there(config):
    model, guide = networks()
    return GuidedPurifier(model.to(META), guide.to(META), config)


def built_there(config):
    with META:
        return GuidedPurifier(Denoiser(UNet(UNET)), Classifier(GUIDE), config)


@pytest.mark.parametrize("made", [moved, given_there, built_there], ids=lambda made: made.__name__)
@pytest.mark.parametrize("kind", KINDS)
def test_all_that_a_purifier_holds_is_where_its_networks_are(made, kind):
    purifier, x = made(guided(kind)), torch.rand(2, 1, 8, 8, device=META)
    for each in (purifier, purifier.configured(t_star=20), purifier.configured(cycles=2).reseed(5)):
        with torch.no_grad():
            assert each(x, draw=1).device == META
        assert each(x.requires_grad_(), ids=torch.arange(2)).device == META
        assert each.memory_report()["step_per_image"] > 0
        assert held_on(each) == {"meta"}
    assert len(list(tensors_held(purifier, {}))) > len(list(purifier.parameters()))


def test_a_seed_left_on_the_cpu_would_be_noticed():
    purifier = given_there(guided("none"))
    purifier.seed = torch.tensor(0)
    assert held_on(purifier) == {"meta", "cpu"}


@pytest.mark.parametrize(("kind", "mode"), WAYS)
def test_no_operation_of_a_purification_or_of_its_gradient_touches_another_device(kind, mode):
    purifier, x = given_there(guided(kind, gradient=mode, surrogate_steps=1)), torch.rand(2, 1, 8, 8, device=META)
    purifier(x.requires_grad_(), draw=0)  # writes the plans, on the CPU, and moves them
    with Elsewhere() as elsewhere:
        out = purifier(x, draw=1)
        (grad,) = torch.autograd.grad(out.sum(), x)
    assert grad.device == META and not elsewhere.found


def test_an_operation_elsewhere_is_found():
    with Elsewhere() as elsewhere:
        torch.zeros(3, device=META) + torch.tensor(1.0)
    assert "aten.add.Tensor" in elsewhere.found and "aten.mul.Tensor" not in elsewhere.found


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.op} {case}")
def test_every_op_runs_where_its_arguments_are(case):
    there = [value.to(META) if isinstance(value, torch.Tensor) else value for value in case.arguments()]
    with Elsewhere() as elsewhere:
        made = OPS[case.op](*there, **case.keywords)
    assert devices_of(made) == {"meta"} and not elsewhere.found


def test_the_moving_average_is_where_its_network_is():
    network = UNet(UNET).to(META)
    average = MovingAverage(network, 0.9)
    average.update_parameters(network)
    assert devices_of(list(average.module.state_dict().values())) == {"meta"}


# Another default device, where CPU tensors are given


def equal_results(function):
    """What `function()` gives, and again with meta as the default device: the very same."""
    expected = function()
    with META:
        found = function()
    assert len(expected) == len(found) > 0
    for one, other in zip(expected, found, strict=True):
        assert one.device == other.device and torch.equal(one, other)


@pytest.mark.parametrize("execution", ["loop", "graph"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_default_device_does_not_matter_to_a_purifier(kind, execution):
    (model, guide), x = networks(), images(2).abs()

    def purified():
        """Of three calls: with recordings the first two only prepare."""
        purifier = GuidedPurifier(model, guide, guided(kind, noise="fixed"), execution=execution)
        return [tensor for _ in range(3) for tensor in there_and_back(purifier, x)]

    equal_results(purified)


def there_and_back(purifier, x):
    with torch.no_grad():
        value = purifier(x)
    out = purifier(x := x.clone().requires_grad_())
    return value, out.detach(), *torch.autograd.grad(out.square().sum(), x)


@pytest.mark.parametrize("engine", [None, "reference"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.op} {case}")
def test_the_default_device_does_not_matter_to_an_op(case, engine):
    def computed():
        with ops.backend(engine) if engine else contextlib.nullcontext():
            return [result for result in tree_leaves(OPS[case.op](*case.arguments(), **case.keywords)) if result.numel()]

    equal_results(computed)


PLANS = [("linear", "ddpm"), ("linear", "vp_sde"), ("cosine", "ddpm"), ("cosine", "ddim")]


@pytest.mark.parametrize(("schedule", "sampler"), PLANS)
def test_the_default_device_does_not_matter_to_a_plan(sampler, schedule):
    config = guided("adversarial", sampler=sampler)
    config = dataclasses.replace(config, schedule=dataclasses.replace(config.schedule, kind=schedule))
    equal_results(lambda: list(tensors_held(make_plan(config), {})))


def test_the_default_device_does_not_matter_to_measurements():
    purifier, x = GuidedPurifier(*networks(), guided("adversarial", noise="fixed")), images(4).abs()
    expected = purifier.calibrate(x, 0.3), purifier.memory_report(), gradient_self_test(purifier, x, num_directions=3)
    with META:
        assert (purifier.calibrate(x, 0.3), purifier.memory_report()) == expected[:2]
        assert gradient_self_test(purifier, x, num_directions=3) == expected[2]


TRAINERS = {
    "diffusion": lambda x, y, out: train_diffusion(
        x, UNET, DiffusionTraining(steps=2, batch_size=3, warmup_steps=1, ema_decay=0.5), out, held_out=x
    ),
    "classifier": lambda x, y, out: train_classifier(
        x, y, GUIDE, ClassifierTraining(steps=2, batch_size=3, attack=Perturbation(num_steps=1)), out, held_out=(x, y)
    ),
    "trades": lambda x, y, out: train_trades(
        x, y, GUIDE, TradesTraining(steps=2, batch_size=3, t_star=20, attack=Perturbation(num_steps=1)), out, held_out=(x, y)
    ),
}


@pytest.mark.parametrize("trainer", TRAINERS)
def test_the_default_device_does_not_matter_to_a_trainer(trainer, tmp_path):
    x, y, run = images(4).abs(), torch.arange(4), iter(range(2))
    equal_results(lambda: list(TRAINERS[trainer](x, y, tmp_path / str(next(run))).state_dict().values()))


ATTACKS = [
    {"kind": "pgd", "start": "guide"},
    {"kind": "pgd", "norm": "l2"},
    {"kind": "square"},
    {"kind": "stadv", "norm": "spatial", "epsilon": 1.0},
]


@pytest.mark.parametrize("changes", ATTACKS, ids=str)
def test_the_default_device_does_not_matter_to_an_attack(changes):
    (model, guide), x, y = networks(), images(3).abs(), torch.arange(3)
    defence = Defence("ours", guide, GuidedPurifier(model, guide, guided("adversarial")), guide=guide)
    config = AttackConfig(name="attack", num_steps=2, num_eot=2, **changes)
    equal_results(lambda: [attack(defence, x, y, config)])
