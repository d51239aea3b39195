"""From images in class folders to a purifier, purified images and a table, by commands alone: no file is edited in between."""

import json

import numpy as np
import pytest
from PIL import Image

from purify_engine import GuidedPurifier, load_classifier
from purify_engine.data import digits
from purify_engine.evaluation import row_self_test

UNET = "--unet.image-size 8 --unet.in-channels 1 --unet.base-channels 8 --unet.channel-mult 1 --unet.num-res-blocks 1"
NETWORK = "--{0}.architecture cifar_resnet --{0}.depth 8 --{0}.width 4"
TRAININGS = "--diffusion.steps 1 --diffusion.batch-size 6 --diffusion.t-max 40 --trades.steps 1 --trades.batch-size 6 "
TRAININGS += "--trades.attack.num-steps 1 --trades.attack.epsilon 0.1 --classifier.steps 1 --classifier.attack.num-steps 1"
TINY = [UNET, "--unet.norm-groups 4", NETWORK.format("guide-network"), NETWORK.format("classifier-network"), TRAININGS]
TINY = [*" ".join(TINY).split(), "--num-steps", 1]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Six digits of each of three classes to train on, four held out, as images in class folders."""
    root = tmp_path_factory.mktemp("digits")
    for split, count in (("train", 6), ("test", 4)):
        images, labels = digits(split)
        for number, name in enumerate(("one", "zero", "two")):
            (root / split / name).mkdir(parents=True)
            for row in (labels == number).nonzero().flatten()[:count].tolist():
                Image.fromarray((255 * images[row, 0].numpy()).round().astype(np.uint8)).save(root / split / name / f"{row}.png")
    return root


def test_class_folders_become_a_purifier_that_purifies_and_is_evaluated(folders, command, tmp_path, monkeypatch):
    monkeypatch.setattr(row_self_test, "row_self_tests", lambda rows, images, labels, **how: {"passed": True})
    train, test, made = folders / "train", folders / "test", tmp_path / "purifier"
    code, out, err = command("train", "purifier", train, made, *TINY, "--device", "cpu")
    assert code == 0, err
    assert f"{made} is a purifier: t_star 40, guidance scale" in out and f"on 18 images of {train}" in out
    assert "trained against perturbations in linf up to 0.1" in out
    purifier = GuidedPurifier.from_pretrained(made)
    assert purifier.config.t_star == 40 and purifier.config.num_steps == 1 and purifier.config.guidance.scale > 0
    assert load_classifier(made).class_names == purifier.guide.class_names == ("one", "two", "zero")
    told = json.loads((made / "config.json").read_text())["training"]
    assert {part: said["data"]["images"] for part, said in told.items()} == dict.fromkeys(told, 18) and len(told) == 4
    assert len({said["data"]["sha256"] for said in told.values()}) == 1

    assert command("purify", test, tmp_path / "clean", "--purifier", made, "--device", "cpu")[0] == 0
    assert len(list((tmp_path / "clean").rglob("*.png"))) == 12

    words = ["--purifier", made, "--output", tmp_path / "cells.jsonl", "--attacks", "standard", "--attacks", "BPDA"]
    words += ["--num-steps", 1, "--num-eot", 1, "--num-draws", 1, "--limit", 3, "--device", "cpu"]
    words += ["--defences", "ours"]
    code, out, err = command("evaluate", test, *words)
    assert code == 0, err
    assert "Accuracy on 3 images" in out and "labels by the classifier's names of its 3 classes" in out
    assert "attacks of linf 0.1 (as the guide was trained for); l2 attacks left out: no --epsilon-l2 was given" in out
    assert "minimum" not in out, "of one attack there is none"
    cells = [json.loads(line) for line in (tmp_path / "cells.jsonl").read_text().splitlines()]
    assert all(len(set(cell["ids"])) == 3 and {row // 4 for row in cell["ids"]} == {0, 1, 2} for cell in cells)
