"""The README's picture: held-out digits as they were, attacked, and purified, each with the classifier's verdict.

    python -m bench digits-picture     writes docs/figures/digits.png

One digit of each class, the first on which the attack succeeds, purified by noise draw 0: the same picture at every run.
"""

from __future__ import annotations

import argparse

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from bench.core.run import ROOT
from purify_engine import GuidedPurifier, load_classifier
from purify_engine.config import AttackConfig
from purify_engine.data import digits
from purify_engine.evaluation.attacks import attack
from purify_engine.evaluation.defences import Defence

PICTURE = ROOT / "docs" / "figures" / "digits.png"
TILE, GAP, MARGIN, CAPTION = 72, 8, 92, 22
RIGHT, WRONG, INK = "#1a7f37", "#cf222e", "#1f2328"


def main(words: list[str]) -> int:
    argparse.ArgumentParser("python -m bench digits-picture", description=(__doc__ or "").splitlines()[0]).parse_args(words)
    purifier, classifier = GuidedPurifier.from_pretrained("digits"), load_classifier("digits")
    defence = Defence("ours", classifier, purifier, purifier.guide)
    images, labels = digits("test")
    blind = AttackConfig(name="transferred", gradient="blind", num_steps=40)
    attacked = attack(defence, images, labels, blind)
    with torch.no_grad():
        fooled = (classifier(images).argmax(dim=1) == labels) & (classifier(attacked).argmax(dim=1) != labels)
        chosen = torch.stack([(fooled & (labels == digit)).nonzero()[0, 0] for digit in range(10)])
        stages = {"input": images[chosen], "attacked": attacked[chosen]}
        stages["purified"] = defence.purify(attacked[chosen], chosen, 0)
        verdicts = {name: classifier(stage).argmax(dim=1) for name, stage in stages.items()}
    PICTURE.parent.mkdir(exist_ok=True)
    drawn(stages, verdicts, labels[chosen]).save(PICTURE, optimize=True)
    print(f"written: {PICTURE}")
    return 0


def drawn(stages: dict[str, Tensor], verdicts: dict[str, Tensor], labels: Tensor) -> Image.Image:
    """A row a stage, a column a digit, the verdict under each."""
    width, height = MARGIN + len(labels) * (TILE + GAP), len(stages) * (TILE + CAPTION + GAP)
    sheet = Image.new("RGB", (width, height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=15)
    for row, (name, images) in enumerate(stages.items()):
        top = row * (TILE + CAPTION + GAP)
        draw.text((0, top + TILE / 2), name, fill=INK, font=font, anchor="lm")
        for column, (image, verdict, label) in enumerate(zip(images, verdicts[name], labels, strict=True)):
            left = MARGIN + column * (TILE + GAP)
            tile = Image.fromarray((255 * (1 - image[0])).round().byte().numpy())
            sheet.paste(tile.resize((TILE, TILE), Image.Resampling.NEAREST), (left, top))
            draw.rectangle((left, top, left + TILE - 1, top + TILE - 1), outline="#d0d7de")
            colour = RIGHT if verdict == label else WRONG
            draw.text((left + TILE / 2, top + TILE + 3), str(int(verdict)), fill=colour, font=font, anchor="mt")
    return sheet
