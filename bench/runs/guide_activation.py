"""What a smooth guide costs, and what a ReLU guide hides: both trained alike on the embedded digits, then attacked.

    python -m bench guide-activation     appends to bench/results/guide_activation.jsonl; trains for minutes

One JSON line an activation, a seed and a form of guidance. The guide alone: accuracy on held-out digits, clean and under PGD. The
purifier that it guides, by its features or by its pseudo-label: how far the exact derivative and central differences part, by the
length of the difference, and each image's score under PGD through the exact gradient and under attacks that do without it. A
pseudo-label is an argmax, which hides as well: that gradient takes the soft label's (straight-through).
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.core.run import RESULTS
from purify_engine import GuidedPurifier, load_classifier
from purify_engine.config import AttackConfig
from purify_engine.data import digits
from purify_engine.evaluation.attacks import FIRST_SCORING_DRAW, attack
from purify_engine.evaluation.defences import LATENT_RATIO, LATENT_TERM, Defence, calibrated
from purify_engine.evaluation.protocol import score
from purify_engine.evaluation.suite import CLEAN
from purify_engine.files import append_json_line
from purify_engine.models import Classifier, load_safetensors
from purify_engine.training.perturbation import robust_accuracy
from purify_engine.training.recipes.digits import ASSEMBLY, ATTACK, GUIDE, GUIDE_TRAINING
from purify_engine.training.trades import train_trades
from purify_engine.types import Images, Labels

FIGURES = "guide_activation.jsonl"
ACTIVATIONS = "relu", "silu"
EXACT = AttackConfig(name="exact", num_steps=12, num_eot=2)
FORMS: dict[str, tuple[float, dict[str, Any], AttackConfig]] = {  # the pull's ratio, the guidance, and PGD through its gradient
    "features": (LATENT_RATIO, LATENT_TERM, EXACT),
    "pseudo-label": (ASSEMBLY.ratio, {}, replace(EXACT, gradient="straight_through")),
}
OTHERS = (
    replace(EXACT, name="BPDA", gradient="bpda"),
    replace(EXACT, name="surrogate", gradient="surrogate"),
    AttackConfig(name="transferred", gradient="blind", num_steps=40),
    AttackConfig(name="transfer from the guide", surface="guide", num_steps=60),
)
GUIDE_ALONE = replace(ATTACK, num_steps=40, step_size=0.01)
DRAWS = range(FIRST_SCORING_DRAW, FIRST_SCORING_DRAW + 5)
STEPS = 1e-6, 1e-5, 1e-4, 1e-3, 1e-2  # of central differences, in [0, 1] image units: each pixel moves by so much
PROBED, DIRECTIONS = 32, 8  # images and directions that derivatives are compared on


def main(words: list[str]) -> int:
    options = argparse.ArgumentParser("python -m bench guide-activation", description=(__doc__ or "").splitlines()[0])
    options.add_argument("--images", type=int, default=96, help="held-out digits to attack")
    options.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of the guides' training")
    options.add_argument("--steps", type=int, default=GUIDE_TRAINING.steps, help="of the guides' training")
    options.add_argument("--guides", type=Path, help="folder that keeps the trained guides, for another run")
    options.add_argument("--results", type=Path, default=RESULTS, help=f"folder of {FIGURES}")
    chosen = options.parse_args(words)
    folder = chosen.guides or Path(tempfile.mkdtemp(prefix="purify-guides-"))
    for seed in chosen.seeds:
        for activation in ACTIVATIONS:
            guide = trained(activation, seed, chosen.steps, folder / f"{activation}-{seed}")
            for form in FORMS:
                line = {"activation": activation, "seed": seed, "steps": chosen.steps, **measured(guide, form, chosen.images)}
                print(json.dumps({name: value for name, value in line.items() if name != "scores"}), flush=True)
                append_json_line(chosen.results / FIGURES, line)
    return 0


def trained(activation: Any, seed: int, steps: int, folder: Path) -> Classifier:
    """The embedded guide's network and training, but for the activation and the seed; what `folder` holds is read again."""
    network = replace(GUIDE, activation=activation)
    if not (folder / "guide.safetensors").exists():
        train_trades(*digits("train"), network, replace(GUIDE_TRAINING, seed=seed, steps=steps), folder, resume=True)
    return load_safetensors(Classifier(network), folder / "guide.safetensors").eval().requires_grad_(False)


def measured(guide: Classifier, form: str, num_images: int) -> dict[str, Any]:
    """The guide alone on all held-out digits; the purifier that it guides on the first so many of them."""
    images, labels = digits("test")
    clean = float((guide(images).argmax(dim=1) == labels).double().mean())
    robust = robust_accuracy(guide, images, labels, GUIDE_ALONE)
    base = GuidedPurifier.from_pretrained("digits")
    known = digits("train")[0][:ASSEMBLY.calibration_images]
    ratio, guidance, exact = FORMS[form]
    purifier = calibrated(GuidedPurifier(base.denoiser, guide, base.config), known, ratio, **guidance)
    return {
        "form": form,
        "scale": round(purifier.config.guidance.scale, 4),
        "guide": {"n": len(images), "clean": round(clean, 4), "robust": round(robust, 4)},
        "apart": apart(purifier, images[:PROBED]),
        **attacked(Defence(form, load_classifier("digits"), purifier, guide), exact, images[:num_images], labels[:num_images]),
    }


def apart(purifier: GuidedPurifier, images: Images) -> dict[str, float]:
    """Median of |exact - difference| / |difference| over images and directions, by the length of the difference.

    Of a random linear functional of each purified image, in float64, along directions that move every pixel alike, up or down.
    """
    double, images = copy.deepcopy(purifier).double(), images.double().clamp(max(STEPS), 1 - max(STEPS))
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(images.shape, generator=generator, dtype=torch.float64)
    directions = torch.randn(DIRECTIONS, *images.shape, generator=generator, dtype=torch.float64).sign()
    ids = torch.arange(len(images))

    def functional(x: Images) -> Tensor:
        return (weights * double(x, ids=ids, draw=0)).flatten(1).sum(dim=1)

    leaf = images.clone().requires_grad_()
    (grad,) = torch.autograd.grad(functional(leaf).sum(), leaf)
    exact = (directions * grad).flatten(2).sum(dim=2)
    found = {}
    with torch.no_grad():
        for step in STEPS:
            ends = [torch.stack([functional(images + sign * step * each) for each in directions]) for sign in (1, -1)]
            difference = (ends[0] - ends[1]) / (2 * step)
            found[f"{step:.0e}"] = float(f"{((exact - difference).abs() / difference.abs()).median():.3g}")
    return found


def attacked(defence: Defence, exact: AttackConfig, images: Images, labels: Labels) -> dict[str, Any]:
    """Each image's score: clean, under the exact gradient, and under every other attack."""
    ids, started = torch.arange(len(images)), time.perf_counter()
    scores = {
        each.name: score(defence, attack(defence, images, labels, each, ids=ids), labels, ids, DRAWS)
        for each in (CLEAN, exact, *OTHERS)
    }
    accuracies = {name: round(sum(own) / len(own), 4) for name, own in scores.items()}
    seconds = round(time.perf_counter() - started, 1)
    return {"n": len(images), "accuracy": accuracies, "scores": scores, "seconds": seconds}
