import json

import numpy as np
import pytest

from purify_engine.config import ClassifierConfig, UNetConfig
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


def test_images_without_labels_are_refused(labelled, tmp_path, command):
    np.save(tmp_path / "bare.npy", np.load(labelled)["images"])
    code, _, err = command("train", "classifier", tmp_path / "bare.npy", tmp_path / "out", *network(SMALL_CLASSIFIER))
    assert code == 2 and "source must have labels" in err
