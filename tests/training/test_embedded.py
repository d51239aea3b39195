import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

import purify_engine
from purify_engine.config import ClassifierConfig, PurifierConfig, UNetConfig, from_dict, to_dict
from purify_engine.data import digits
from purify_engine.models import Classifier, UNet, load_safetensors
from purify_engine.presets import load_classifier
from purify_engine.purifier import GuidedPurifier
from purify_engine.reference.schedules import make_schedule
from purify_engine.training import embedded
from purify_engine.training.diffusion import denoising_error
from purify_engine.training.perturbation import accuracy, robust_accuracy
from purify_engine.training.record import TrainingSet, remembered

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
    calibrated_on = remembered(images[: embedded.CALIBRATION_IMAGES], None, embedded.DATA)
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


def test_the_purifier_is_configured_as_its_maker_says():
    images, _ = digits("train")
    purifier = GuidedPurifier.from_pretrained("digits")
    scale = purifier.config.guidance.scale
    assert purifier.config == replace(embedded.PURIFIER, guidance=replace(embedded.PURIFIER.guidance, scale=scale))
    # The last of four digits may round the other way on another machine.
    assert embedded.calibrated_scale(images, WEIGHTS) == pytest.approx(scale, rel=2e-3)


def test_all_three_are_trained_and_finished_ones_are_kept(monkeypatch, tmp_path):
    for name in ("UNET_TRAINING", "GUIDE_TRAINING", "CLASSIFIER_TRAINING"):
        monkeypatch.setattr(embedded, name, replace(getattr(embedded, name), steps=1, batch_size=4))
    images, labels = (each[:20] for each in digits("train"))
    embedded.train_embedded(images, labels, tmp_path)
    weights = sorted(tmp_path.glob("*.safetensors"))
    assert [path.stem for path in weights] == NAMES
    weights[1].unlink()
    trained = []
    embedded.train_embedded(images, labels, tmp_path, resume=True, progress=lambda report: trained.append(report["network"]))
    assert set(trained) == {"guide"}
    assert GuidedPurifier.from_pretrained(tmp_path).config.guidance.scale > 0


class Asked:
    """Stands for the three trainers and notes what each was asked to do; it writes the weights file that a trainer writes."""

    def __init__(self, monkeypatch):
        self.calls = {}
        for trainer, name in (("train_classifier", "classifier"), ("train_trades", "guide"), ("train_diffusion", "unet")):
            monkeypatch.setattr(embedded, trainer, self.trainer(name))
        monkeypatch.setattr(embedded, "calibrated_scale", lambda images, folder: 2.5)
        monkeypatch.setattr(embedded, "remembered", lambda *data: TrainingSet(source="", images=1, shape=(1,), sha256="abc"))

    def trainer(self, name):
        def train(*arguments, **options):
            (folder,) = [argument for argument in arguments if isinstance(argument, Path)]
            self.calls[name] = (arguments, options)
            folder.mkdir(exist_ok=True)
            (folder / f"{name}.safetensors").touch()

        return train


def test_each_network_is_trained_by_its_configuration_on_the_same_digits(monkeypatch, tmp_path):
    asked, images, labels, held_out, progress = Asked(monkeypatch), range(9), object(), (object(), object()), object()
    embedded.train_embedded(images, labels, tmp_path, held_out=held_out, seconds=6.0, progress=progress)
    shared = {"data": embedded.DATA, "seconds": 2.0, "resume": False, "progress": progress}
    classified = {**shared, "held_out": held_out, "class_names": embedded.CLASSES}
    assert asked.calls == {
        "classifier": ((images, labels, embedded.CLASSIFIER, embedded.CLASSIFIER_TRAINING, tmp_path), classified),
        "guide": ((images, labels, embedded.GUIDE, embedded.GUIDE_TRAINING, tmp_path), classified),
        "unet": ((images, embedded.UNET, embedded.UNET_TRAINING, tmp_path), {**shared, "held_out": held_out[0]}),
    }
    assert list(asked.calls) == ["classifier", "guide", "unet"]
    config = json.loads((tmp_path / "config.json").read_text())
    assert from_dict(UNetConfig, config["unet"]) == embedded.UNET
    assert from_dict(ClassifierConfig, config["guide"]) == embedded.GUIDE
    assert from_dict(ClassifierConfig, config["classifier"]) == embedded.CLASSIFIER
    expected = replace(embedded.PURIFIER, guidance=replace(embedded.PURIFIER.guidance, scale=2.5))
    assert from_dict(PurifierConfig, config["purifier"]) == expected


@pytest.mark.parametrize("there", [(), ("unet",), ("classifier", "guide"), ("classifier", "guide", "unet")], ids=str)
@pytest.mark.parametrize("resume", [True, False])
def test_finished_networks_are_kept_only_when_resuming(resume, there, monkeypatch, tmp_path):
    asked = Asked(monkeypatch)
    for name in there:
        (tmp_path / f"{name}.safetensors").touch()
    embedded.train_embedded(range(9), None, tmp_path, resume=resume)
    assert sorted(asked.calls) == [name for name in NAMES if not (resume and name in there)]
    assert all(options["resume"] is resume for _, options in asked.calls.values())
    assert all(options["held_out"] is None for _, options in asked.calls.values())


def test_the_scale_is_calibrated_on_the_first_digits_to_the_ratio_in_four_digits(monkeypatch):
    seen = []

    def calibrate(purifier, images, ratio):
        seen.append((purifier.config, purifier.guide is not None, images, ratio))
        return 1.234567

    monkeypatch.setattr(GuidedPurifier, "calibrate", calibrate)
    images, _ = digits("train")
    assert embedded.calibrated_scale(images, WEIGHTS) == 1.235
    ((config, guided, used, ratio),) = seen
    assert config == embedded.PURIFIER and guided and ratio == embedded.RATIO
    assert len(used) == 256 and (used == images[:256]).all()
