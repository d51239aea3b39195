import hashlib
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import purify_engine
from purify_engine.config import GuidanceConfig, PurifierConfig, from_dict, to_dict
from purify_engine.data import digits
from purify_engine.models import Classifier, UNet, load_safetensors
from purify_engine.presets import load_classifier
from purify_engine.purifier import GuidedPurifier
from purify_engine.reference.schedules import make_schedule
from purify_engine.training.assembly import assemble
from purify_engine.training.diffusion import denoising_error
from purify_engine.training.perturbation import accuracy, robust_accuracy
from purify_engine.training.recipes import RECIPES
from purify_engine.training.recipes import digits as embedded
from purify_engine.training.recipes.run import Examples, calibration_images
from purify_engine.training.record import remembered

WEIGHTS = Path(purify_engine.__file__).parent / "weights" / "digits"
NAMES = ["classifier", "guide", "unet"]


def load(network, name):
    load_safetensors(network, WEIGHTS / f"{name}.safetensors")
    return network.eval()


def printed(name):
    """The rows of a card: {name: value}."""
    return dict(re.findall(r"^\| (.+?) \| (.+?) \|$", (WEIGHTS / f"{name}.md").read_text(), re.M))


def test_the_embedded_networks_are_small_and_each_has_its_card():
    assert sum(path.stat().st_size for path in WEIGHTS.iterdir()) < 8e6
    assert all((WEIGHTS / f"{name}{suffix}").exists() for name in NAMES for suffix in (".safetensors", ".md"))


def test_the_input_normalisation_is_that_of_the_training_digits():
    images, _ = digits("train")
    assert float(images.mean()) == pytest.approx(embedded.MEAN[0], abs=1e-3)
    assert float(images.std()) == pytest.approx(embedded.STD[0], abs=1e-3)


def test_the_classifier_reads_held_out_digits_and_falls_under_attack():
    classifier = load(Classifier(embedded.CLASSIFIER), "classifier")
    images, labels = digits("test")
    assert accuracy(classifier, images, labels) >= 0.97
    assert robust_accuracy(classifier, images, labels, embedded.ATTACK) < 0.10


def test_the_guide_reads_held_out_digits_and_resists():
    guide = load(Classifier(embedded.GUIDE), "guide")
    images, labels = digits("test")
    assert accuracy(guide, images, labels) >= 0.97
    assert robust_accuracy(guide, images, labels, embedded.ATTACK) > 0.75


def test_the_cards_print_what_can_be_measured_again():
    images, labels = digits("test")
    classifier, unet = load(Classifier(embedded.CLASSIFIER), "classifier"), load(UNet(embedded.UNET), "unet")
    right = accuracy(classifier, images, labels)
    assert float(printed("classifier")["held-out: standard accuracy"]) == pytest.approx(right, abs=1e-3)
    error = denoising_error(unet, images, make_schedule(embedded.UNET_TRAINING.schedule), index=149)
    # The noise comes from a seed, but its float rounding and the convolutions' differ between machines.
    assert float(printed("unet")["held-out: RMSE of the denoised image at timestep 149"]) == pytest.approx(error, rel=1e-2)


def test_the_cards_print_the_configurations_in_force():
    for name, network, training in [
        ("unet", embedded.UNET, embedded.UNET_TRAINING),
        ("guide", embedded.GUIDE, embedded.GUIDE_TRAINING),
        ("classifier", embedded.CLASSIFIER, embedded.CLASSIFIER_TRAINING),
    ]:
        rows = printed(name)
        assert rows["steps"] == str(training.steps) and rows["seed"] == str(training.seed)
        assert rows["learning_rate"] == f"{training.learning_rate:.4g}"
        assert all(rows[field] == str(value) for field, value in vars(network).items() if isinstance(value, (int, str)))
        fields = dict(flattened({**to_dict(network), **to_dict(training)}))
        assert {field: rows.get(field) for field in fields} == fields
        digest = hashlib.sha256((WEIGHTS / f"{name}.safetensors").read_bytes()).hexdigest()
        assert f"SHA-256 of the weights: `{digest}`" in (WEIGHTS / f"{name}.md").read_text()


def test_the_folder_says_what_its_networks_were_trained_on_and_which_classes_they_name():
    images, labels = digits("train")
    config, of_digits = json.loads((WEIGHTS / "config.json").read_text()), remembered(images, labels, embedded.DATA)
    trainings = {"unet": embedded.UNET_TRAINING, "guide": embedded.GUIDE_TRAINING, "classifier": embedded.CLASSIFIER_TRAINING}
    for name, training in trainings.items():
        data = replace(of_digits, labels_sha256=None) if name == "unet" else of_digits
        plain = json.loads(json.dumps({"data": to_dict(data), **to_dict(training)}))
        assert config["training"][name] == plain
        assert f"SHA-256 of their pixels: `{of_digits.sha256}`" in (WEIGHTS / f"{name}.md").read_text()
    calibrated_on = remembered(images[: embedded.ASSEMBLY.calibration_images], None, embedded.DATA)
    plain = json.loads(json.dumps({"data": to_dict(calibrated_on), **to_dict(embedded.ASSEMBLY)}))
    assert config["training"]["purifier"] == plain
    purifier, classifier = GuidedPurifier.from_pretrained("digits"), load_classifier("digits")
    assert classifier.class_names == purifier.guide.class_names == tuple("0123456789")


def flattened(values, prefix=""):
    """(name, as a card shows it) of every setting; those of an attack or a schedule as `attack.epsilon`."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from flattened(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", f"{value:.4g}" if isinstance(value, float) else str(value)


def test_the_purifier_is_configured_as_its_recipe_says():
    purifier, how = GuidedPurifier.from_pretrained("digits"), embedded.ASSEMBLY
    guidance = GuidanceConfig(scale=1.0, label_weight=how.label_weight, latent_weight=how.latent_weight)
    expected = PurifierConfig(t_star=how.t_star, num_steps=how.num_steps, guidance=guidance)
    scale = purifier.config.guidance.scale
    assert purifier.config == replace(expected, guidance=replace(guidance, scale=scale)) and scale > 0


def test_the_recipe_is_of_these_networks_and_assembled_on_the_first_digits(monkeypatch, tmp_path):
    recipe = RECIPES["digits"]
    assert {name: (part.network, part.training) for name, part in recipe.parts.items()} == {
        "classifier": (embedded.CLASSIFIER, embedded.CLASSIFIER_TRAINING),
        "guide": (embedded.GUIDE, embedded.GUIDE_TRAINING),
        "unet": (embedded.UNET, embedded.UNET_TRAINING),
    }
    assert recipe.assembly == embedded.ASSEMBLY and recipe.classes == tuple("0123456789") and recipe.data == embedded.DATA
    images, labels = digits("train")
    chosen = calibration_images(Examples(images=images, labels=labels), embedded.ASSEMBLY.calibration_images)
    assert len(chosen) == 256 and bool((chosen == images[:256]).all())


def test_the_folder_is_assembled_again_to_what_it_holds(tmp_path):
    shutil.copytree(WEIGHTS, tmp_path / "digits")
    images, _ = digits("train")
    made = assemble(tmp_path / "digits", images[:256], embedded.ASSEMBLY, embedded.DATA)
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (WEIGHTS, tmp_path / "digits"))
    saved = from_dict(PurifierConfig, before.pop("purifier"))
    # The last of four digits may round the other way on another machine.
    assert made.guidance.scale == pytest.approx(saved.guidance.scale, rel=2e-3)
    assert replace(made, guidance=replace(made.guidance, scale=saved.guidance.scale)) == saved
    assert from_dict(PurifierConfig, after.pop("purifier")) == made and after == before
