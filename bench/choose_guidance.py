"""How strong should the guidance be? Decided on training images, never on the held-out ones: `python bench/choose_guidance.py`.

For each form of guidance and each ratio r it prints one JSON line: the scale s that `calibrate` gives, and the accuracy
of the defended classifier on clean, transferred and adaptively attacked training digits. The choice stands in the
preset's config.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from purify_engine.config import AttackConfig
from purify_engine.data import digits
from purify_engine.evaluation.attacks import FIRST_SCORING_DRAW, attack
from purify_engine.evaluation.defences import Defence, calibrated
from purify_engine.evaluation.protocol import score
from purify_engine.evaluation.suite import CLEAN
from purify_engine.presets import load_classifier
from purify_engine.purifier import GuidedPurifier

RATIOS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.2)
FORMS = {
    "pixel": {"kind": "pixel"},
    "latent": {"kind": "adversarial", "latent_weight": 1.0, "label_weight": 0.0, "pseudo_label": "none"},
    "label": {"kind": "adversarial", "latent_weight": 0.0, "label_weight": 1.0, "pseudo_label": "pseudo"},
    "soft label": {"kind": "adversarial", "latent_weight": 0.0, "label_weight": 1.0, "pseudo_label": "soft"},
}
CALIBRATION, DRAWS = 200, range(FIRST_SCORING_DRAW, FIRST_SCORING_DRAW + 5)


def candidates(
    base: GuidedPurifier, images: torch.Tensor, wanted: list[str]
) -> Iterator[tuple[str, float, GuidedPurifier]]:
    """(form, ratio, purifier): unguided first, then every form at every ratio."""
    yield "none", 0.0, calibrated(base, images, 0.0, kind="pixel")
    for form in wanted:
        for ratio in RATIOS:
            yield form, ratio, calibrated(base, images, ratio, **FORMS[form])


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument(
        "--model", default="digits", help="an embedded purifier or a folder with a purifier and its classifier"
    )
    options.add_argument("--images", type=int, default=128, help="training digits to attack")
    options.add_argument("--forms", nargs="+", default=list(FORMS), choices=list(FORMS))
    options.add_argument("--out", type=Path, help="append the lines to this file too")
    chosen = options.parse_args()
    base, classifier = GuidedPurifier.from_pretrained(chosen.model), load_classifier(chosen.model)
    images, labels = digits("train")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    attacked, rest = order[: chosen.images], order[chosen.images :][:CALIBRATION]
    for form, ratio, purifier in candidates(base, images[rest], chosen.forms):
        line = json.dumps(measure(form, ratio, purifier, classifier, images[attacked], labels[attacked]))
        print(line, flush=True)
        if chosen.out:
            with chosen.out.open("a") as file:
                file.write(line + "\n")


def measure(
    form: str, ratio: float, purifier: GuidedPurifier, classifier: torch.nn.Module, images, labels
) -> dict[str, object]:
    """One line: three accuracies of one candidate."""
    defence, ids, started = (
        Defence(form, classifier, purifier, purifier.guide),
        torch.arange(len(images)),
        time.perf_counter(),
    )
    line: dict[str, object] = {"form": form, "ratio": ratio, "scale": purifier.config.guidance.scale, "n": len(images)}
    for wanted in (
        CLEAN,
        AttackConfig(name="transferred", gradient="blind", num_steps=40),
        AttackConfig(name="adaptive", gradient="straight_through", num_steps=10, num_eot=2),
    ):
        scores = score(defence, attack(defence, images, labels, wanted, ids=ids), labels, ids, DRAWS)
        line[wanted.name] = round(sum(scores) / len(scores), 4)
    return {**line, "seconds": round(time.perf_counter() - started, 1)}


if __name__ == "__main__":
    sys.exit(main())
