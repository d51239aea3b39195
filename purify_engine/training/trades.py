"""The guide: a classifier trained by TRADES (docs/math.md E21), optionally on images as noisy as those it will be shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from purify_engine.config import ClassifierConfig, Perturbation, TradesTraining, require
from purify_engine.models import Classifier
from purify_engine.reference.process import diffuse
from purify_engine.reference.schedules import NoiseSchedule, make_schedule
from purify_engine.training.batches import check_training_set, compact, pixels
from purify_engine.training.classifier import LabelledImages, classification_figures, momentum_sgd
from purify_engine.training.computing import in_full
from purify_engine.training.finishing import Comparison, finish
from purify_engine.training.loop import Loop, averages_of, initialised
from purify_engine.training.model_card import ModelCard, count_parameters
from purify_engine.training.perturbation import accuracy, perturb, robust_accuracy
from purify_engine.training.progress import Progress, silent
from purify_engine.training.rates import rate_at
from purify_engine.training.record import TrainingSet, remembered
from purify_engine.types import Images, Labels, Logits

VIEWED = 10_000  # images, for the card
View = Callable[[Images], Images]  # images in [0, 1] -> what the guide is shown


def train_trades(
    images: Images,
    labels: Labels,
    network: ClassifierConfig,
    config: TradesTraining,
    out_dir: Path,
    *,
    held_out: LabelledImages | None = None,
    data: str = "",
    class_names: tuple[str, ...] | None = None,
    seconds: float | None = None,
    resume: bool = False,
    progress: Progress = silent,
) -> Classifier:
    """Train a guide on `images` ([N, C, H, W], float in [0, 1] or uint8) and `labels` (int64 [N]), on their device; return it.

    Writes `guide.safetensors` and the card `guide.md` to `out_dir`, and what both say into its `config.json`; until then
    `guide.checkpoint`, which `resume=True` continues from. `held_out` (images, labels) are measured only, to choose among
    averages of several lengths too. `data` is the card's sentence about the images, `class_names` are those of the labels 0, 1,
    ... `seconds` of wall-clock time are what all runs together may take: the learning rate falls to its end within them.
    ValueError: what does not fit. FloatingPointError: the loss diverged.
    """
    check_training_set(images, labels, network.in_channels, network.num_classes)
    named = class_names is None or len(set(class_names)) == network.num_classes
    require(named, "class_names", f"{network.num_classes} different names, one a class of the network", class_names)
    learned = remembered(images, labels, data)
    schedule = make_schedule(config.schedule)
    model = cast(Classifier, initialised(lambda: Classifier(network), config.seed)).to(images.device)
    loop = Loop(
        name="guide",
        model=model,
        network=network,
        config=config,
        optimizer=momentum_sgd(model, config),
        rate=partial(rate_at, config=config),
        draw=lambda x: (*draw_views(x, config), torch.randn_like(x)),
        loss=lambda x, y, *drawn: trades_loss(model, x, y, config, schedule, *drawn),
        out_dir=out_dir,
        data=learned,
        averages=averages_of(model, config),
        seconds=seconds,
    )
    loop.run(compact(images), labels, resume=resume, progress=progress)
    trained = finish(
        loop,
        _comparison(held_out, config.attack),
        lambda model: _figures(model, {"training": (images, labels), "held-out": held_out}, config, schedule),
        lambda figures: _card(model, network, config, figures, learned, class_names),
        progress,
    )
    trained.class_names = class_names
    return trained


def _comparison(held_out: LabelledImages | None, attack: Perturbation) -> Comparison[Classifier] | None:
    """Averages of a guide are compared by their robust accuracy, under the attack that it is trained against."""
    if held_out is None:
        return None
    images, labels = pixels(held_out[0][:1000]), held_out[1][:1000]
    return Comparison("robust accuracy under the training's attack", lambda model: robust_accuracy(model, images, labels, attack))


def trades_loss(
    model: Classifier, images: Images, labels: Labels, config: TradesTraining, schedule: NoiseSchedule, *drawn: Tensor
) -> Tensor:
    """CE(p(v(x)), y) + lambda * max KL(p(v(x)) || p(v(x + delta))), v the guide's (perhaps noisy) view; leaves train mode on.

    drawn: what `draw_views` drew for these images, and then the start of the perturbation, N(0, I); by default drawn here.
    """
    *views, start = drawn or (*draw_views(images, config), torch.randn_like(images))
    view = noisy_view(images, config, schedule, *views)
    model.eval()
    with torch.no_grad():
        unperturbed = model(view(images))
    adversarial = perturb(images, lambda x: divergence(unperturbed, model(view(x))), config.attack, start)
    model.train()
    logits = model(view(images))
    robust = divergence(logits, model(view(adversarial))) / len(images)
    return F.cross_entropy(in_full(logits), labels) + config.trade_off * robust


def draw_views(images: Images, config: TradesTraining) -> tuple[Tensor, ...]:
    """What the guide's views of these images are made of: timesteps, which are clean, noise; nothing where t_star is 0."""
    if config.t_star == 0:
        return ()
    index = torch.randint(config.t_star, (len(images),), device=images.device)
    clean = torch.rand(len(images), device=images.device) < config.clean_share
    return index, clean, torch.randn_like(images)


def noisy_view(images: Images, config: TradesTraining, schedule: NoiseSchedule, *drawn: Tensor) -> View:
    """What the guide sees of a batch: r(x_t) = (x_t + 1) / 2, x_t diffused to a random timestep of [0, t_star) an image.

    The noise is `drawn` once (by `draw_views`, by default here), so that an image and its perturbed copy differ by their
    perturbation only. Where t_star is 0, and for a share `clean_share` of the images, it is the image itself.
    """
    if config.t_star == 0:
        return lambda x: x
    index, clean, noise = drawn or draw_views(images, config)
    alpha_bar = schedule.alphas_cumprod.to(images)[index].masked_fill(clean, 1).view(-1, 1, 1, 1)
    marginal = torch.stack([alpha_bar.sqrt(), (1 - alpha_bar).sqrt()])
    return lambda x: (diffuse(2 * x - 1, noise, marginal) + 1) / 2


def divergence(logits: Logits, perturbed: Logits) -> Tensor:
    """KL(p || p'), summed over the batch."""
    return F.kl_div(in_full(perturbed).log_softmax(1), in_full(logits).log_softmax(1), reduction="sum", log_target=True)


def _figures(
    model: Classifier, sets: dict[str, LabelledImages | None], config: TradesTraining, schedule: NoiseSchedule
) -> dict[str, float]:
    thorough = replace(config.attack, num_steps=4 * config.attack.num_steps, step_size=config.attack.step_size / 2)
    figures = classification_figures(model, sets, thorough)
    for name, examples in sets.items():
        if examples is not None and config.t_star:
            with torch.random.fork_rng(devices=[examples[0].device] if examples[0].is_cuda else []):
                torch.manual_seed(config.seed)
                images = pixels(examples[0][:VIEWED])
                noisy = noisy_view(images, config, schedule)(images)
            figures[f"{name}: standard accuracy on noisy views"] = accuracy(model, noisy, examples[1][:VIEWED])
    return figures


def _card(
    model: Classifier,
    network: ClassifierConfig,
    config: TradesTraining,
    figures: dict[str, float],
    data: TrainingSet,
    class_names: tuple[str, ...] | None,
) -> ModelCard:
    seen = f"images noised to timesteps below {config.t_star}" if config.t_star else "images without noise"
    return ModelCard(
        name="guide",
        title="Guide (TRADES)",
        what="Classifies images robustly; its gradient and its penultimate features steer the purifier.",
        data=data,
        class_names=class_names,
        parameters=count_parameters(model),
        network=network,
        config=config,
        figures=figures,
        use=f"Guiding a purifier. It was trained on {seen}, perturbed in {config.attack.norm} up to {config.attack.epsilon:.3g}.",
        limits="Robust accuracy here is against the one attack named, on this network alone: an upper bound. "
        "Outside the radius, the norm and the noise levels it was trained on, nothing was measured.",
    )
