import json
import signal
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from purify_engine import GuidedPurifier
from purify_engine.config import ClassifierConfig, ScheduleConfig, UNetConfig
from purify_engine.models import Classifier, UNet
from purify_engine.models.checkpoints import load_safetensors

SMALL_UNET = ["image-size=8", "in-channels=1", "base-channels=8", "channel-mult=1", "num-res-blocks=1", "norm-groups=4"]
SMALL_CLASSIFIER = ["architecture=cifar_resnet", "depth=8", "width=4", "in-channels=1", "num-classes=2", "mean=0.5", "std=0.5"]


def network(settings):
    return [f"--network.{setting}" for setting in settings]


@pytest.fixture
def labelled(tmp_path):
    """Sixteen bright and dark images, in a file with their labels."""
    labels = np.arange(16) % 2
    images = np.random.RandomState(0).rand(16, 1, 8, 8) * 0.4 + 0.5 * labels[:, None, None, None]
    np.savez(tmp_path / "in.npz", images=images.astype(np.float32), labels=labels)
    return tmp_path / "in.npz"


def test_a_diffusion_model_is_trained_and_saved(labelled, tmp_path, command):
    words = ["--steps", 2, "--batch-size", 4, "--t-max", 50, "--warmup-steps", 0, *network(SMALL_UNET)]
    code, out, err = command("train", "diffusion", labelled, tmp_path / "out", *words, "--json")
    assert code == 0, err
    assert json.loads(out)["trained"][0]["network"] == "unet"
    shape = {"image_size": 8, "in_channels": 1, "base_channels": 8, "channel_mult": (1,), "num_res_blocks": 1, "norm_groups": 4}
    load_safetensors(UNet(UNetConfig(**shape)), tmp_path / "out" / "unet.safetensors")
    assert (tmp_path / "out" / "unet.md").exists()


@pytest.mark.parametrize(("verb", "name"), [("trades", "guide"), ("classifier", "classifier")])
def test_a_network_that_classifies_is_trained_and_saved(verb, name, labelled, tmp_path, command):
    words = ["--steps", 2, "--batch-size", 4, "--attack.num-steps", 1, "--no-flip", *network(SMALL_CLASSIFIER)]
    code, out, err = command("train", verb, labelled, tmp_path / "out", *words)
    assert code == 0, err
    assert f"{name}: " in out and "standard accuracy" in out
    shape = {"depth": 8, "width": 4, "in_channels": 1, "num_classes": 2}
    config = ClassifierConfig(architecture="cifar_resnet", **shape, mean=(0.5,), std=(0.5,))
    load_safetensors(Classifier(config), tmp_path / "out" / f"{name}.safetensors")
    activation = {"guide": "silu", "classifier": "relu"}[name]
    assert f"| activation | {activation} |" in (tmp_path / "out" / f"{name}.md").read_text()


def test_images_without_labels_are_refused(labelled, tmp_path, command):
    np.save(tmp_path / "bare.npy", np.load(labelled)["images"])
    code, _, err = command("train", "classifier", tmp_path / "bare.npy", tmp_path / "out", *network(SMALL_CLASSIFIER))
    assert code == 2 and "source must have labels" in err


def test_every_option_arrives_at_the_trainer(labelled, tmp_path, command, monkeypatch):
    from purify_engine.config import ClassifierTraining, DiffusionTraining, Perturbation, TradesTraining
    from purify_engine.training import classifier, diffusion, trades

    given = {}
    monkeypatch.setattr(diffusion, "train_diffusion", lambda *words, **named: given.update(diffusion=(words, named)))
    monkeypatch.setattr(trades, "train_trades", lambda *words, **named: given.update(trades=(words, named)))
    monkeypatch.setattr(classifier, "train_classifier", lambda *words, **named: given.update(classifier=(words, named)))
    small = [*network(SMALL_CLASSIFIER), "--steps", 3, "--seed", 5]
    out = tmp_path / "out"
    assert (
        command("train", "diffusion", labelled, out, *network(SMALL_UNET), "--steps", 3, "--resume", "--schedule.kind", "cosine")[
            0
        ]
        == 0
    )
    assert command("train", "trades", labelled, out, *small, "--attack.epsilon", 0.25, "--t-star", 10)[0] == 0
    assert command("train", "classifier", labelled, out, *small, "--attack.epsilon", 0.25, "--no-flip", "--shift", 0)[0] == 0
    file = np.load(labelled)
    for verb in ("diffusion", "trades", "classifier"):
        words, named = given[verb]
        assert np.array_equal(words[0].numpy(), file["images"]) and words[-1] == out and named["data"] == str(labelled)
        assert named["resume"] is (verb == "diffusion")
        assert verb == "diffusion" or words[1].tolist() == file["labels"].tolist()
    assert given["diffusion"][0][1].base_channels == 8 and given["diffusion"][0][2] == DiffusionTraining(
        steps=3, schedule=ScheduleConfig(kind="cosine")
    )
    assert given["trades"][0][3] == TradesTraining(steps=3, seed=5, t_star=10, attack=Perturbation(epsilon=0.25))
    assert given["classifier"][0][3] == ClassifierTraining(
        steps=3, seed=5, flip=False, shift=0, attack=Perturbation(epsilon=0.25, num_steps=20)
    )
    networks = {verb: given[verb][0][2] for verb in ("classifier", "trades")}
    assert networks["classifier"].depth == 8 and networks["classifier"].activation == "relu"
    assert networks["trades"] == replace(networks["classifier"], activation="silu")  # a guide's exact gradient needs smoothness
    assert command("train", "trades", labelled, out, *small, "--network.activation", "relu")[0] == 0
    assert given["trades"][0][2] == networks["classifier"]


def test_the_digits_are_trained_on_their_training_split(tmp_path, command, monkeypatch):
    from purify_engine.data import digits
    from purify_engine.training.recipes import RECIPES, run

    given = {}

    def train(recipe, data, output, *, progress, **how):
        given.update(recipe=recipe, data=data, output=output, **how)
        progress({"network": "unet", "step": 1, "steps": 2, "loss": 0.5})
        progress({"network": "unet", "figures": {"error": 0.123456}, "weights": "unet.safetensors"})
        return run.Followed()

    monkeypatch.setattr(run, "train_recipe", train)
    code, out, _ = command("train", "digits", "--output", tmp_path / "out", "--resume", "--seconds", 90)
    assert code == 0 and given["output"] == tmp_path / "out" and given["resume"] is True and given["seconds"] == 90
    assert given["recipe"] is RECIPES["digits"] and given["parts"] == []
    for mine, split in (((given["data"].images, given["data"].labels), "train"), (given["data"].held_out, "test")):
        assert all(np.array_equal(ours.numpy(), theirs.numpy()) for ours, theirs in zip(mine, digits(split), strict=True))
    assert out.startswith("unet: unet.safetensors\n  error: 0.1235\n")


def test_a_training_that_fails_reports_nothing_finished(tmp_path, command, monkeypatch):
    from purify_engine.training.recipes import run

    def fail(*args, progress, **kwargs):
        progress({"network": "unet", "figures": {}, "weights": "unet.safetensors"})
        raise OSError(28, "No space left on device", "/full")

    monkeypatch.setattr(run, "train_recipe", fail)
    code, out, err = command("train", "digits", "--output", tmp_path / "out")
    assert (code, out, err) == (5, "", "purify-engine: No space left on device: /full\n")


def quick(verb, steps=1):
    small = {"diffusion": [*network(SMALL_UNET), "--warmup-steps", 0]}.get(verb, [*network(SMALL_CLASSIFIER), "--no-flip"])
    return [*small, "--steps", steps, "--batch-size", 4, *([] if verb == "diffusion" else ["--attack.num-steps", 1])]


def test_finished_weights_are_kept_unless_replaced_and_resuming_finds_them(labelled, tmp_path, command):
    words = ["train", "classifier", labelled, tmp_path / "out", *quick("classifier")]
    weights = tmp_path / "out/classifier.safetensors"
    assert command(*words)[0] == 0
    first = weights.read_bytes()
    code, out, err = command(*words, "--seed", 3)
    assert code == 2 and not out and "--replace trains it again" in err and err.count("\n") == 1
    assert weights.read_bytes() == first
    code, out, _ = command(*words, "--resume")
    assert code == 0 and out == f"classifier: {weights} was finished before, and is kept\n"
    code, _, err = command(*words, "--resume", "--seed", 3)
    assert code == 2 and "resume must be of the training that made classifier.safetensors" in err and "'seed': (0, 3)" in err
    assert command(*words, "--replace", "--seed", 3)[0] == 0 and weights.read_bytes() != first
    code, _, err = command("train", "digits", "--output", tmp_path / "out")
    assert code == 2 and "a folder without classifier.safetensors" in err


@pytest.mark.parametrize("label", [-100, -1, 2])
def test_a_label_that_the_network_does_not_have_is_named_by_its_row(label, tmp_path, command):
    labels = np.array([0, 1, 1, label, 0])
    np.savez(tmp_path / "in.npz", images=np.full((5, 1, 8, 8), 0.5, np.float32), labels=labels)
    code, _, err = command("train", "classifier", tmp_path / "in.npz", tmp_path / "out", *quick("classifier"))
    assert code == 2 and err == f"purify-engine: labels[3] must be in [0, 2), the network's classes, got {label}\n"
    assert not (tmp_path / "out").exists()


def test_a_classifier_is_of_the_classes_and_of_the_colours_that_its_images_have(tmp_path, command, monkeypatch):
    from purify_engine.training import trades

    trained = []
    monkeypatch.setattr(trades, "train_trades", lambda images, labels, net, *words, **named: trained.append((labels, net, named)))
    for name, level in (("dark", 51), ("grey", 102), ("light", 153)):
        (tmp_path / "in" / name).mkdir(parents=True)
        for number in range(2):
            Image.new("L", (8, 8), level).save(tmp_path / "in" / name / f"{number}.png")
    words = ["train", "trades", tmp_path / "in", tmp_path / "out", "--network.in-channels", 1]
    code, _, err = command(*words, "--network.num-classes", 10)
    assert code == 2 and f"num_classes must be 3, the classes of {tmp_path / 'in'}, got 10" in err and not trained
    code, out, err = command(*words)
    assert code == 0, err
    assert f"{tmp_path / 'out'} is no purifier yet: `train diffusion` adds its diffusion model" in out
    ((labels, net, named),) = trained
    assert labels.tolist() == [0, 0, 1, 1, 2, 2] and named["class_names"] == ("dark", "grey", "light")
    assert net.num_classes == 3 and net.mean == (0.4,)
    assert net.std == (0.1635,)  # the root of 2 / 3 * 384 / 383, times a fifth


def test_networks_trained_one_by_one_become_a_purifier_and_are_assembled_anew(labelled, tmp_path, command, monkeypatch):
    monkeypatch.setattr(GuidedPurifier, "calibrate", lambda self, images, ratio: 100 * ratio)
    made = tmp_path / "out"
    code, out, err = command("train", "assemble", made, labelled)
    assert code == 2 and "output must be a folder with a diffusion model (`train diffusion`)" in err
    code, out, err = command("train", "diffusion", labelled, made, *quick("diffusion"), "--t-max", 20)
    assert code == 0 and f"{made} is a purifier: t_star 20, not guided (`train trades` adds a guide)" in out, err
    code, out, err = command("train", "trades", labelled, made, *quick("trades"), "--attack.epsilon", 0.25)
    assert code == 0, err
    assert f"{made} is a purifier: t_star 20, guidance scale 80, calibrated to the ratio 0.8 on 16 images" in out
    assert "linf up to 0.25" in out
    code, out, err = command("train", "assemble", made, labelled, "--t-star", 10, "--num-steps", 2, "--ratio", 0.4, "--json")
    assert code == 0, err
    assert json.loads(out)["purifier"]["config"]["t_star"] == 10
    assert json.loads(out)["purifier"]["config"]["guidance"]["scale"] == 40
    config = json.loads((made / "config.json").read_text())
    assert config["purifier"]["num_steps"] == 2 and config["training"]["purifier"]["ratio"] == 0.4
    code, _, err = command("train", "assemble", made, labelled, "--t-star", 21)
    assert code == 2 and "t_star must be at most 20, the timesteps that the U-Net is trained on, got 21" in err
    code, _, err = command("purify", labelled, tmp_path / "clean.npz", "--purifier", made, "--t-star", 21)
    assert code == 2 and "t_star must be at most 20, the timesteps that the diffusion model was trained on, got 21" in err


def test_what_cannot_fit_is_refused_before_the_first_network_is_trained(labelled, tmp_path, command):
    words = [*(f"--unet.{setting}" for setting in SMALL_UNET), "--diffusion.t-max", 20, "--t-star", 30]
    code, _, err = command("train", "purifier", labelled, tmp_path / "out", *words)
    assert code == 2 and "t_star must be at most 20" in err and not (tmp_path / "out").exists()


def test_images_of_another_size_are_told_of_the_option_that_takes_them(labelled, tmp_path, command):
    code, _, err = command("train", "diffusion", labelled, tmp_path / "out", "--network.in-channels", 1)
    assert code == 2 and "the network takes 32x32: resize it first, or train a network of another size" in err


def test_a_training_that_diverges_is_one_line(labelled, tmp_path, command):
    words = ["train", "classifier", labelled, tmp_path / "out", *network(SMALL_CLASSIFIER), "--no-flip", "--steps", 4]
    code, out, err = command(*words, "--batch-size", 4, "--learning-rate", 1e30)
    assert (code, out) == (2, "") and err.startswith("purify-engine: classifier: the loss is nan at step ")
    assert "lower learning_rate or lengthen warmup_steps" in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_training_that_is_stopped_says_how_to_go_on(number, expected, labelled, tmp_path, command, monkeypatch):
    from purify_engine.training.loop import Loop

    advance = Loop._advance

    def advanced(loop, images, labels):
        if loop.step == 1:
            signal.raise_signal(number)
        return advance(loop, images, labels)

    words = ["train", "classifier", labelled, tmp_path / "out", *quick("classifier", steps=3)]
    with monkeypatch.context() as patched:
        patched.setattr(Loop, "_advance", advanced)
        patched.setattr("sys.argv", ["purify-engine", "train", "classifier"])
        code, out, err = command(*words)
    assert (code, out) == (expected, "")
    assert err.splitlines()[-1] == (
        "purify-engine: stopped at step 2 of 3 of the classifier; go on with: purify-engine train classifier --resume"
    )
    assert (tmp_path / "out/classifier.checkpoint").exists() and not (tmp_path / "out/classifier.safetensors").exists()
    code, _, err = command(*words, "--resume")
    assert code == 0 and (tmp_path / "out/classifier.safetensors").exists()


def test_seconds_end_a_training_that_has_many_steps_left(labelled, tmp_path, command):
    words = ["train", "classifier", labelled, tmp_path / "out", *quick("classifier", steps=10**7)]
    code, out, err = command(*words, "--seconds", 1e-6)
    assert code == 0 and "standard accuracy" in out, err
    assert "1 steps of 10,000,000, when its time was over" in (tmp_path / "out/classifier.md").read_text()
    code, _, err = command(*words, "--seconds", -1, "--replace")
    assert code == 2 and "seconds must be positive, or None, got -1" in err
