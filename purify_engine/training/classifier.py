"""The plain classifier: cross-entropy and nothing against attacks. It is what the purifier protects, and what is attacked."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F

from purify_engine.config import ClassifierConfig, ClassifierTraining, Perturbation, TradesTraining, require
from purify_engine.models import Classifier
from purify_engine.training.batches import check_training_set, compact, pixels
from purify_engine.training.computing import fused_on, in_full
from purify_engine.training.finishing import Comparison, finish
from purify_engine.training.loop import Loop, averages_of, initialised
from purify_engine.training.model_card import ModelCard, count_parameters
from purify_engine.training.perturbation import accuracy, robust_accuracy
from purify_engine.training.progress import Progress, silent
from purify_engine.training.rates import rate_at
from purify_engine.training.record import TrainingSet, remembered
from purify_engine.types import Images, Labels

LabelledImages = tuple[Images, Labels]


def train_classifier(
    images: Images,
    labels: Labels,
    network: ClassifierConfig,
    config: ClassifierTraining,
    out_dir: Path,
    *,
    held_out: LabelledImages | None = None,
    data: str = "",
    class_names: tuple[str, ...] | None = None,
    seconds: float | None = None,
    resume: bool = False,
    progress: Progress = silent,
) -> Classifier:
    """Train on `images` ([N, C, H, W], float in [0, 1] or uint8) and `labels` (int64 [N]), on their device; return the result.

    Writes `classifier.safetensors` and the card `classifier.md` to `out_dir`, and what both say into its `config.json`;
    until then `classifier.checkpoint`, which `resume=True` continues from. `held_out` (images, labels) are measured only, to
    choose among averages of several lengths too. `data` is the card's sentence about the images, `class_names` are those of the
    labels 0, 1, ... `seconds` of wall-clock time are what all runs together may take: the learning rate falls to its end within
    them. ValueError: what does not fit. FloatingPointError: the loss diverged.
    """
    check_training_set(images, labels, network.in_channels, network.num_classes)
    named = class_names is None or len(set(class_names)) == network.num_classes
    require(named, "class_names", f"{network.num_classes} different names, one a class of the network", class_names)
    learned = remembered(images, labels, data)
    model = cast(Classifier, initialised(lambda: Classifier(network), config.seed)).to(images.device)
    loop = Loop(
        name="classifier",
        model=model,
        network=network,
        config=config,
        optimizer=momentum_sgd(model, config),
        rate=partial(rate_at, config=config),
        loss=lambda x, y: F.cross_entropy(in_full(model(x)), y),
        out_dir=out_dir,
        data=learned,
        averages=averages_of(model, config),
        seconds=seconds,
    )
    loop.run(compact(images), labels, resume=resume, progress=progress)
    compared = None if held_out is None else (pixels(held_out[0]), held_out[1])
    trained: Classifier = finish(
        loop,
        compared and Comparison("standard accuracy", lambda model: accuracy(model, *compared)),
        lambda model: classification_figures(model, {"training": (images, labels), "held-out": held_out}, config.attack),
        lambda figures: _card(model, network, config, figures, learned, class_names),
        progress,
    )
    trained.class_names = class_names
    return trained


def momentum_sgd(model: Classifier, config: ClassifierTraining | TradesTraining) -> torch.optim.SGD:
    """SGD as both classifiers use it."""
    parameters, rate, decay = model.parameters(), config.learning_rate, config.weight_decay
    return torch.optim.SGD(parameters, rate, momentum=config.momentum, weight_decay=decay, fused=fused_on(model))


def classification_figures(model: Classifier, sets: dict[str, LabelledImages | None], attack: Perturbation) -> dict[str, float]:
    """Standard and robust accuracy of `model` on (up to 1000 images of) each set, and leave it in eval mode."""
    figures: dict[str, float] = {}
    name_of_attack = f"PGD-{attack.num_steps}, {attack.norm} {attack.epsilon:.3g}"
    for name, examples in sets.items():
        if examples is not None:
            images, labels = pixels(examples[0][:1000]), examples[1][:1000]
            figures[f"{name}: standard accuracy"] = accuracy(model, images, labels)
            figures[f"{name}: robust accuracy ({name_of_attack})"] = robust_accuracy(model, images, labels, attack)
    return figures


def _card(
    model: Classifier,
    network: ClassifierConfig,
    config: ClassifierTraining,
    figures: dict[str, float],
    data: TrainingSet,
    class_names: tuple[str, ...] | None,
) -> ModelCard:
    return ModelCard(
        name="classifier",
        title="Plain classifier",
        what="Classifies images; trained by cross-entropy alone, with nothing against attacks.",
        data=data,
        class_names=class_names,
        parameters=count_parameters(model),
        network=network,
        config=config,
        figures=figures,
        use="The classifier behind the purifier, and the target of attacks that measure the purifier.",
        limits="It is meant to be fragile: without a purifier an attack at the measured radius is expected to succeed.",
    )
