"""`train recipe`: from CIFAR's own kinds of files to examples, classes compared, and the whole way once on a toy recipe."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from purify_engine.training.recipes import RECIPES, run
from tests.training.test_recipes import TOY

PIXELS = np.random.RandomState(0).randint(256, size=(2012, 32, 32, 3)).astype(np.uint8)
LABELS = np.arange(2012) % 10


@pytest.fixture
def followed(monkeypatch):
    """Notes what would be trained."""
    given = {}
    monkeypatch.setattr(run, "train_recipe", lambda recipe, data, output, **how: given.update(data=data, **how) or run.Followed())
    return given


def test_the_last_two_thousand_images_are_held_out_and_the_card_says_so(tmp_path, command, followed):
    np.savez(tmp_path / "train-0.npz", images=PIXELS, labels=LABELS)
    words = ("--data", tmp_path, "--part", "guide", "--seconds", 600)
    code, out, err = command("train", "recipe", "cifar10-small", tmp_path / "out", *words)
    assert code == 0, err
    data = followed["data"]
    assert data.images.shape == (12, 3, 32, 32) and data.labels.tolist() == LABELS[:12].tolist()
    assert np.array_equal((data.images * 255).round().numpy(), PIXELS[:12].transpose(0, 3, 1, 2))
    assert data.held_out[1].tolist() == LABELS[12:].tolist()
    assert np.array_equal((data.held_out[0][-1] * 255).round().numpy(), PIXELS[-1].transpose(2, 0, 1))
    assert "Of its 2,012 images the last 2,000 are a validation set: measured, never trained on." in data.said
    assert followed["parts"] == ["guide"] and followed["seconds"] == 600
    name = tmp_path.name
    assert followed["command"] == f"purify-engine train recipe cifar10-small out --data {name} --part guide --seconds 600"


def test_wrong_names_data_and_classes_are_one_line_each(tmp_path, command, followed):
    np.savez(tmp_path / "in.npz", images=PIXELS[:100], labels=LABELS[:100])
    np.savez(tmp_path / "other.npz", images=PIXELS, labels=LABELS, classes=np.array([*"abcdefghij"]))
    np.savez(tmp_path / "bare.npz", images=PIXELS)
    said = {
        ("resnet", "in.npz"): "name must be one of cifar10-small, cifar10, cifar100, digits, got 'resnet'",
        ("cifar10", "in.npz"): "data must be more than 2,000 labelled images, of which 2,000 are held out, got '100 in ",
        ("cifar10", "other.npz"): "data must be of the classes of the recipe cifar10; missing 'airplane', 'automobile'",
        ("cifar10", "bare.npz"): "source must have labels",
        ("digits", "in.npz"): "data must be what the recipe digits is for: The handwritten digits",
    }
    for (name, file), words in said.items():
        code, out, err = command("train", "recipe", name, tmp_path / "out", "--data", tmp_path / file)
        assert code == 2 and not out and err.startswith(f"purify-engine: {words}") and err.count("\n") == 1, err
    code, _, err = command("train", "recipe", "cifar10", tmp_path / "out", "--data", tmp_path / "in.npz", "--part", "net")
    assert code == 2 and "part must be one of classifier, guide, unet, guide-clean, guide-l2, guide-wide" in err
    (tmp_path / "out").mkdir()
    (tmp_path / "out/guide.checkpoint").touch()
    code, _, err = command("train", "recipe", "cifar10", tmp_path / "out", "--data", tmp_path / "nowhere")
    assert code == 2 and "a folder without guide.checkpoint (--resume goes on from it" in err and not followed


def test_a_toy_recipe_from_class_folders_to_images_of_any_size_purified_by_its_packed_copy(tmp_path, command, monkeypatch):
    monkeypatch.setitem(RECIPES, "toy", TOY)
    for name, level in (("bright", 180), ("dark", 60)):  # in another order than the recipe has them
        (tmp_path / "in" / name).mkdir(parents=True)
        for number in range(6):
            Image.new("L", (8, 8), level + number).save(tmp_path / "in" / name / f"{number}.png")
    words = ("train", "recipe", "toy", tmp_path / "out", "--data", tmp_path / "in")
    code, _, err = command(*words)
    assert code == 2 and "of the classes of the recipe toy; in another order" in err
    for old, new in (("bright", "x"), ("dark", "bright"), ("x", "dark")):
        (tmp_path / "in" / old).rename(tmp_path / "in" / new)
    monkeypatch.setitem(RECIPES, "toy", TOY.__class__(**{**vars(TOY), "classes": ("bright", "dark")}))
    code, out, err = command(*words)
    assert code == 0, err
    assert f"{tmp_path / 'out'} is a purifier" in out and "slow, middle, fast" in out
    assert "Of its 12 images 2 spread over all classes are a validation set" in (tmp_path / "out/guide.md").read_text()
    code, out, err = command("train", "pack", tmp_path / "out", tmp_path / "small", "--json")
    assert code == 0 and json.loads(out)["packed"]["precision"] == "fp16", err
    Image.new("L", (13, 9), 100).save(tmp_path / "photo.png")
    words = ("--purifier", tmp_path / "small", "--preset", "fast")
    code, _, err = command("purify", tmp_path / "photo.png", tmp_path / "clean.png", *words)
    assert code == 0, err
    assert Image.open(tmp_path / "clean.png").size == (13, 9)


def test_a_packed_purifier_in_the_place_of_the_embedded_ones_is_found_by_its_name(tmp_path, small_purifier, monkeypatch):
    from purify_engine import folders, load_classifier, presets
    from purify_engine.purifier import GuidedPurifier

    shutil.copytree(small_purifier, tmp_path / "cifar10-small")
    for module in (folders, presets):
        monkeypatch.setattr(module, "EMBEDDED", tmp_path)
    assert presets.list_purifiers() == ["cifar10-small"]
    assert GuidedPurifier.from_pretrained("cifar10-small").config.t_star == 30
    assert load_classifier("cifar10-small").config.depth == 8 and isinstance(presets.resolve("cifar10-small"), Path)
