"""A defended classifier as RobustBench takes models, and its claim in the layout of RobustBench's `model_info`. Needs neither.

RobustBench's leaderboard takes deterministic models without an optimisation in the forward pass (its README, "restrictions"). A
random, guided purifier is neither, and `benchmark` would run AutoAttack's standard version on it, which is made for
deterministic models. So: for tables of one's own in RobustBench's layout, from AutoAttack's version "rand" and adaptive attacks.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from purify_engine import devices
from purify_engine.config import one_of, require
from purify_engine.defended import DefendedClassifier, Vote
from purify_engine.files import write_text
from purify_engine.presets import load_classifier

if TYPE_CHECKING:
    from purify_engine.purifier import GuidedPurifier

BenchmarkDataset = Literal["cifar10", "cifar100", "imagenet"]
ThreatModel = Literal["Linf", "L2"]

MODEL_NAME = re.compile(r"[A-Za-z]+\d{4}[A-Za-z0-9_.-]+")


def load_model(
    purifier: GuidedPurifier,
    classifier: str | Path | torch.nn.Module,
    num_draws: int = 1,
    vote: Vote = "logits",
    device: str | torch.device = "cpu",
) -> DefendedClassifier:
    """What RobustBench's `load_model` returns: a module from images in [0, 1] to logits, in evaluation mode, on `device`
    ("auto": a GPU where there is one).

    purifier: one of images in [0, 1], else ValueError. classifier: a module, or what `load_classifier` takes.
    """
    require(purifier.config.image_range == (0, 1), "purifier", "one of image_range=(0, 1)", purifier.config.image_range)
    where = devices.torch_device(device)
    network = load_classifier(classifier) if isinstance(classifier, str | Path) else classifier
    return DefendedClassifier(purifier, network, num_draws, vote).eval().to(where)


def model_info(
    defended: DefendedClassifier,
    *,
    name: str,
    authors: str,
    link: str,
    venue: str,
    architecture: str,
    additional_data: bool,
    dataset: BenchmarkDataset,
    eps: float,
    clean_acc: float,
    autoattack_acc: float,
    external: float,
    evaluation: str,
) -> dict[str, Any]:
    """A claim, as the dictionary that RobustBench keeps as JSON.

    name, authors, link, venue: of the paper. architecture: of the classifier. additional_data: than the dataset's own training
    images. eps: the budget. clean_acc, autoattack_acc, external: accuracies in [0, 1]: without attack, under AutoAttack's version
    "rand", and the least that is known, minimum over all attacks, each scored on draws that it has not seen. evaluation: the
    attack that gave `external`, with its steps and draws.

    `reported` is the lower of the two, the forward passes are those of U-Net and classifier over all draws, and `unreliable` is
    true: AutoAttack warns of random and of dynamic defences, and this is both. ValueError for values outside their range, and
    where `external` is above `autoattack_acc`: the least that is known cannot be.
    """
    one_of("dataset", dataset, BenchmarkDataset)
    require(eps > 0, "eps", "above 0", eps)
    for field, accuracy in {"clean_acc": clean_acc, "autoattack_acc": autoattack_acc, "external": external}.items():
        require(0 <= accuracy <= 1, field, "in [0, 1]", accuracy)
    require(external <= autoattack_acc, "external", f"at most autoattack_acc={autoattack_acc:g}", external)
    config, draws = defended.purifier.config, defended.num_draws
    steps = defended.purifier.num_steps
    how = f"purified with random noise ({steps} steps from t*={config.t_star}, {draws} draws, vote by {defended.vote})"
    return {
        "link": link,
        "name": name,
        "authors": authors,
        "additional_data": additional_data,
        "number_forward_passes": draws * (steps + 1),
        "dataset": dataset,
        "venue": venue,
        "architecture": architecture,
        "eps": _budget(eps),
        "clean_acc": _percent(clean_acc),
        "reported": _percent(external),
        "autoattack_acc": _percent(autoattack_acc),
        "external": _percent(external),
        "footnote": f"Images are {how}; AutoAttack's version is rand, and the best known attack {evaluation}.",
        "unreliable": True,
    }


def write_model_info(info: dict[str, Any], threat_model: ThreatModel, model_name: str, folder: str | Path = "model_info") -> Path:
    """Write `info` where RobustBench looks for it, `folder`/<dataset>/<threat_model>/<model_name>.json, and return that path.

    model_name: <Name><Year><FirstWordOfTheTitle>, as in Rice2020Overfitting; ValueError for another.
    """
    one_of("threat_model", threat_model, ThreatModel)
    require(MODEL_NAME.fullmatch(model_name) is not None, "model_name", "<Name><Year><FirstWordOfTheTitle>", model_name)
    path = Path(folder) / info["dataset"] / threat_model / f"{model_name}.json"
    write_text(path, json.dumps(info, indent=2))
    return path


def _percent(accuracy: float) -> str:
    return str(round(100 * float(accuracy), 2))  # of a tensor, too


def _budget(eps: float) -> str:
    """8/255 as RobustBench writes it, where it is a whole number of grey levels."""
    levels = 255 * eps
    return f"{round(levels)}/255" if levels < 255 and abs(levels - round(levels)) < 1e-6 else f"{eps:g}"
