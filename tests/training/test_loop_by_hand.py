"""Every trainer against its steps written out, in float64: batches, rates, losses, gradients, optimiser, moving average, files.

What is written out here follows the papers, with sums and loops instead of PyTorch's losses and optimisers. Which images a step
sees and how they are augmented is tested in test_batches.py.
"""

import math

import pytest
import torch

from purify_engine.config import ClassifierTraining, DiffusionTraining, Perturbation, ScheduleConfig, TradesTraining
from purify_engine.models import Classifier, UNet
from purify_engine.training.batches import augment, batch_indices, seed_everything
from purify_engine.training.classifier import train_classifier
from purify_engine.training.diffusion import train_diffusion
from purify_engine.training.trades import train_trades

SCHEDULE = ScheduleConfig(num_timesteps=60, beta_end=0.1)
ALPHA_BAR = [math.prod(1 - (1e-4 + i / 59 * (0.1 - 1e-4)) for i in range(t + 1)) for t in range(60)]
CLOSE = {"rtol": 0, "atol": 1e-9}  # float64, over a few steps; a fault in a rate or a sign is 1e-3


@pytest.fixture(autouse=True)
def double_precision():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def images(stripes):
    return stripes[0].double()


def initial(build, seed):
    with torch.random.fork_rng(devices=[]):
        seed_everything(seed, "initialisation")
        return build()


def train_by_hand(model, config, images, labels, loss, rate, update, after=lambda step: None):
    """Steps of `update(parameter, its gradient, its memory, learning rate, step)`; returns the losses and the rates."""
    parameters, losses, rates = list(model.parameters()), [], []
    memories = [{} for _ in parameters]
    with torch.random.fork_rng(devices=[]):
        for step in range(config.steps):
            seed_everything(config.seed, f"step {step}")
            chosen = batch_indices(step, config.batch_size, len(images), config.seed)
            batch = augment(images[chosen], config.shift, config.flip)
            model.train()
            value = loss(model, batch, None if labels is None else labels[chosen])
            gradients = clipped(torch.autograd.grad(value, parameters), getattr(config, "gradient_clip", math.inf))
            with torch.no_grad():
                for parameter, gradient, memory in zip(parameters, gradients, memories, strict=True):
                    update(parameter, gradient, memory, rate(step), step)
            losses.append(float(value.detach()))
            rates.append(rate(step))
            after(step)
    return losses, rates


def clipped(gradients, largest):
    length = math.sqrt(sum(float((gradient**2).sum()) for gradient in gradients))
    return [gradient * min(1, largest / (length + 1e-6)) for gradient in gradients]


def sgd(config):
    """Momentum (Sutskever et al. 2013, as PyTorch has it), weight decay added to the gradient."""

    def update(parameter, gradient, memory, rate, step):
        memory["velocity"] = config.momentum * memory.get("velocity", 0) + gradient + config.weight_decay * parameter
        parameter -= rate * memory["velocity"]

    return update


def adamw(config):
    """Loshchilov and Hutter 2019, algorithm 2; beta 0.9 and 0.999, epsilon 1e-8."""

    def update(parameter, gradient, memory, rate, step):
        memory["m"] = 0.9 * memory.get("m", 0) + 0.1 * gradient
        memory["v"] = 0.999 * memory.get("v", 0) + 0.001 * gradient**2
        m, v = memory["m"] / (1 - 0.9 ** (step + 1)), memory["v"] / (1 - 0.999 ** (step + 1))
        parameter -= rate * (config.weight_decay * parameter + m / (v.sqrt() + 1e-8))

    return update


def cross_entropy(logits, labels):
    probabilities = logits.exp() / logits.exp().sum(1, keepdim=True)
    return sum(-probabilities[i, label].log() for i, label in enumerate(labels)) / len(labels)


def kullback_leibler(logits, perturbed):
    p, q = (each.exp() / each.exp().sum(1, keepdim=True) for each in (logits, perturbed))
    return (p * (p / q).log()).sum()


def assert_same(trained, by_hand):
    for (name, value), expected in zip(trained.state_dict().items(), by_hand.values(), strict=True):
        torch.testing.assert_close(value, expected, msg=lambda text, name=name: f"{name}: {text}", **CLOSE)


def steps_of(reports):
    return [report for report in reports if "step" in report]


def test_a_classifier_is_trained_step_by_step(tiny_classifier, images, stripes, tmp_path):
    labels, reports = stripes[1], []
    config = ClassifierTraining(
        steps=5, batch_size=12, learning_rate=0.07, weight_decay=0.03, momentum=0.8, shift=1, flip=True, seed=3, report_every=1,
        attack=Perturbation(num_steps=1),
    )  # fmt: skip
    model = initial(lambda: Classifier(tiny_classifier), 3)
    losses, rates = train_by_hand(
        model, config, images, labels, lambda model, x, y: cross_entropy(model(x), y),
        lambda step: 0.07 * (1 + math.cos(math.pi * step / 5)) / 2, sgd(config),
    )  # fmt: skip
    trained = train_classifier(images, labels, tiny_classifier, config, tmp_path, progress=reports.append)
    assert_same(trained, model.state_dict())
    assert [report["loss"] for report in steps_of(reports)] == pytest.approx(losses, abs=1e-9)
    assert [report["learning_rate"] for report in steps_of(reports)] == pytest.approx(rates, abs=1e-15)
    assert [report["step"] for report in steps_of(reports)] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("options", [{"t_max": 30}, {}], ids=["to t_max", "to the end"])
def test_a_noise_predictor_is_trained_step_by_step(options, tiny_unet, images, tmp_path):
    reports = []
    config = DiffusionTraining(
        steps=6, batch_size=8, learning_rate=0.01, weight_decay=0.02, warmup_steps=2, gradient_clip=0.3, ema_decay=0.35,
        shift=1, flip=True, seed=4, report_every=1, schedule=SCHEDULE, **options,
    )  # fmt: skip
    model = initial(lambda: UNet(tiny_unet), 4)
    average = {name: value.clone() for name, value in model.state_dict().items()}

    def loss(model, x, _):
        t, noise = torch.randint(options.get("t_max", 60), (len(x),)), torch.randn_like(x)
        squares = 0.0
        alpha_bar = torch.tensor([ALPHA_BAR[i] for i in t]).view(-1, 1, 1, 1)
        predicted = model(alpha_bar.sqrt() * (2 * x - 1) + (1 - alpha_bar).sqrt() * noise, t.double())
        for i in range(len(x)):
            squares = squares + ((predicted[i] - noise[i]) ** 2).sum()
        return squares / x.numel()

    def rate(step):
        return 0.01 * ((step + 1) / 2 if step < 2 else (1 + math.cos(math.pi * (step - 2) / 4)) / 2)

    def move_average(step):
        keep = min(0.35, (2 + step) / (11 + step))  # 2/11, 3/12, 4/13, 5/14: then 0.35
        for name, value in model.state_dict().items():
            average[name] = keep * average[name] + (1 - keep) * value

    losses, rates = train_by_hand(model, config, images, None, loss, rate, adamw(config), move_average)
    trained = train_diffusion(images, tiny_unet, config, tmp_path, progress=reports.append)
    assert_same(trained, average)
    assert [report["loss"] for report in steps_of(reports)] == pytest.approx(losses, abs=1e-9)
    assert [report["learning_rate"] for report in steps_of(reports)] == pytest.approx(rates, abs=1e-15)


@pytest.mark.parametrize("t_star", [0, 40])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_guide_is_trained_step_by_step(norm, t_star, tiny_classifier, images, stripes, tmp_path):
    labels, reports = stripes[1], []
    attack = Perturbation(norm=norm, epsilon=0.1 if norm == "linf" else 0.3, step_size=0.07, num_steps=3)
    config = TradesTraining(
        steps=5, batch_size=10, learning_rate=0.05, weight_decay=0.02, momentum=0.7, shift=1, flip=True, seed=5, report_every=1,
        attack=attack, trade_off=3.0, drop_at=0.6, t_star=t_star, clean_share=0.4, schedule=SCHEDULE,
    )  # fmt: skip
    model = initial(lambda: Classifier(tiny_classifier), 5)

    def loss(model, x, y):
        view = noisy(x) if t_star else lambda images: images
        model.eval()
        clean = model(view(x)).detach()
        moved = (x + 1e-3 * torch.randn_like(x)).clamp(0, 1)
        for _ in range(3):
            moved = moved.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(kullback_leibler(clean, model(view(moved))), moved)
            moved = torch.stack([ascended(*each) for each in zip(moved.detach(), gradient, x, strict=True)])
        model.train()
        logits = model(view(x))
        return cross_entropy(logits, y) + 3.0 * kullback_leibler(logits, model(view(moved))) / len(x)

    def noisy(x):
        t, share = torch.randint(t_star, (len(x),)), torch.rand(len(x))
        noise = torch.randn_like(x)
        a = torch.tensor([1.0 if clean < 0.4 else ALPHA_BAR[i] for i, clean in zip(t, share, strict=True)]).view(-1, 1, 1, 1)
        return lambda images: (a.sqrt() * (2 * images - 1) + (1 - a).sqrt() * noise + 1) / 2

    def ascended(image, gradient, original):
        if norm == "linf":
            step = 0.07 * gradient.sign()
            return (original + (image + step - original).clamp(-0.1, 0.1)).clamp(0, 1)
        delta = image + 0.07 * gradient / (gradient**2).sum().sqrt() - original
        length = (delta**2).sum().sqrt()
        return (original + (delta if length <= 0.3 else 0.3 * delta / length)).clamp(0, 1)

    losses, rates = train_by_hand(
        model, config, images, labels, loss, lambda step: 0.05 if step < 3 else 0.005, sgd(config)
    )  # fmt: skip
    trained = train_trades(images, labels, tiny_classifier, config, tmp_path, progress=reports.append)
    assert_same(trained, model.state_dict())
    assert [report["loss"] for report in steps_of(reports)] == pytest.approx(losses, abs=1e-9)
    assert [report["learning_rate"] for report in steps_of(reports)] == pytest.approx(rates, abs=1e-15)
