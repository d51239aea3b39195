"""Which guidance, and how strong? Decided on training images, never on the held-out ones.

    python -m bench tune-guidance     appends to bench/results/digits-guidance.jsonl

For each form of guidance and each ratio r one JSON line: the scale s that `calibrate` gives, the accuracy of the defended
classifier on clean training digits, under each of a few light attacks, and under each image's worst one. The networks know
these digits, so the figures flatter; what is compared are forms and ratios. What was chosen stands in the preset.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import torch

from bench.core.run import RESULTS
from purify_engine import GuidedPurifier, load_classifier
from purify_engine.config import AttackConfig, GuidanceConfig
from purify_engine.data import digits
from purify_engine.evaluation.attacks import FIRST_SCORING_DRAW, attack
from purify_engine.evaluation.defences import CALIBRATION_IMAGES, LATENT_TERM, Defence, calibrated
from purify_engine.evaluation.protocol import score
from purify_engine.evaluation.suite import CLEAN, fitted
from purify_engine.types import Images, Labels

FIGURES = RESULTS / "digits-guidance.jsonl"
LABEL_TERM = {"kind": "adversarial", "latent_weight": 0.0, "label_weight": 1.0, "pseudo_label": "pseudo"}
FORMS: dict[str, tuple[dict[str, Any], tuple[float, ...]]] = {
    "none": ({"kind": "none"}, (0.0,)),
    "pixel": ({"kind": "pixel"}, (0.5, 1.0, 2.0)),
    "latent": (LATENT_TERM, (0.8, 1.5)),
    "label": (LABEL_TERM, (0.2, 0.5)),
    "both": (LABEL_TERM | {"latent_weight": 0.15}, (0.4,)),
}
ATTACKS = (
    AttackConfig(name="transferred", gradient="blind", num_steps=40),
    AttackConfig(name="straight-through", gradient="straight_through", num_steps=12, num_eot=2),
    AttackConfig(name="exact", num_steps=12, num_eot=2),
    AttackConfig(name="feature matching", loss="features", num_steps=60),
    AttackConfig(name="transfer from the guide", surface="guide", num_steps=60),
)
DRAWS = range(FIRST_SCORING_DRAW, FIRST_SCORING_DRAW + 5)


def main(words: list[str]) -> int:
    options = argparse.ArgumentParser("python -m bench tune-guidance", description=(__doc__ or "").splitlines()[0])
    options.add_argument("--images", type=int, default=96, help="training digits to attack")
    options.add_argument("--forms", nargs="+", default=list(FORMS), choices=list(FORMS))
    chosen = options.parse_args(words)
    base, classifier = GuidedPurifier.from_pretrained("digits"), load_classifier("digits")
    images, labels = digits("train")
    attacked = slice(CALIBRATION_IMAGES, CALIBRATION_IMAGES + chosen.images)
    for form in chosen.forms:
        settings, ratios = FORMS[form]
        for ratio in ratios:
            if form == "none":
                purifier = base.configured(guidance=GuidanceConfig(**settings))
            else:
                purifier = calibrated(base, images[:CALIBRATION_IMAGES], ratio, **settings)
            guide = purifier.guide if settings["kind"] == "adversarial" else None
            defence = Defence(form, classifier, purifier, guide)
            line = {"form": form, "ratio": ratio, **measure(defence, images[attacked], labels[attacked])}
            print(json.dumps(line), flush=True)
            with FIGURES.open("a") as file:
                file.write(json.dumps(line) + "\n")
    return 0


def measure(defence: Defence, images: Images, labels: Labels) -> dict[str, float]:
    """Accuracy of one candidate on clean images, under each attack that applies, and under each image's worst."""
    assert defence.purifier is not None
    ids, started = torch.arange(len(images)), time.perf_counter()
    runs = [run for wanted in (CLEAN, *ATTACKS) if (run := fitted(wanted, defence)) is not None]
    scores = {
        run.name: score(defence, attack(defence, images, labels, run, ids=ids), labels, ids, DRAWS) for run in runs
    }
    figures = {name: round(sum(own) / len(own), 4) for name, own in scores.items()}
    worst = [min(own) for own in zip(*(own for name, own in scores.items() if name != CLEAN.name), strict=True)]
    scale = round(defence.purifier.config.guidance.scale, 4)
    seconds = round(time.perf_counter() - started, 1)
    return {
        "scale": scale,
        "n": len(images),
        **figures,
        "minimum": round(sum(worst) / len(worst), 4),
        "seconds": seconds,
    }
