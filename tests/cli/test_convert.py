"""`purify-engine convert`, and the verbs that take a checkpoint where a purifier or a classifier is named."""

from __future__ import annotations

import json

import numpy as np
import torch

from purify_engine import GuidedPurifier, load_classifier
from tests.test_conversion import checkpoints, networks, tiny

__all__ = ["checkpoints", "networks", "tiny"]  # fixtures


def test_what_is_converted_purifies_as_the_options_say(command, tmp_path, checkpoints, networks):
    unet, guide = checkpoints
    words = ("--guide", guide, "--classifier", guide, "--precision", "bf16", "--t-star", 30, "--guidance.scale", 2, "--json")
    classifier = ("--classifier-network.mean", 0, "--classifier-network.std", 0.2)
    stated = ("--unet.image-size", 16, "--guide-network.mean", 0.5, "--guide-network.std", 1, *classifier)
    code, out, err = command("convert", unet, tmp_path / "out", *words, *stated)
    assert code == 0, err
    told, loaded = json.loads(out), GuidedPurifier.from_pretrained(tmp_path / "out")
    assert told["purifier"]["t_star"] == loaded.config.t_star == 30 and loaded.config.guidance.scale == 2
    assert loaded.denoiser.unet.config.image_size == 16 and loaded.guide.config.mean == (0.5,)
    assert load_classifier(tmp_path / "out").config.std == (0.2,)
    assert told["origin"]["unet"]["layout"] == "tiny" and told["precision"] == "bf16"


def test_it_says_what_was_converted_and_from_where(command, tmp_path, checkpoints):
    code, out, _ = command("convert", checkpoints[0], tmp_path / "out", "--schedule.kind", "linear")
    assert code == 0 and "from unet.pth (tiny)" in out and "t* = 70 of 400 (linear) by ddpm" in out
    code, _, err = command("convert", checkpoints[0], tmp_path / "out")
    assert code == 2 and "output must be a new or an empty folder" in err
    code, _, err = command("convert", checkpoints[0], tmp_path / "new", "--preset", "diffpure-cifar10-linf")
    assert code == 2 and "the noise that the network was trained on (400 timesteps, cosine), got 'diffpure-cifar10-linf'" in err
    (tmp_path / "page.pth").write_text("<html>")
    code, _, err = command("convert", tmp_path / "page.pth", tmp_path / "new")
    assert code == 2 and err.count("\n") == 1 and "is an HTML page" in err


def test_a_checkpoint_purifies_where_a_purifier_is_named(command, tmp_path, checkpoints):
    np.save(tmp_path / "in.npy", np.random.RandomState(0).rand(2, 1, 8, 8).astype(np.float32))
    how = ("--t-star", 9, "--num-steps", 2, "--device", "cpu")
    for name in ("a", "b"):
        code, _, err = command("purify", tmp_path / "in.npy", tmp_path / f"{name}.npy", "--purifier", checkpoints[0], *how)
        assert code == 0, err
    command("convert", checkpoints[0], tmp_path / "folder")
    command("purify", tmp_path / "in.npy", tmp_path / "c.npy", "--purifier", tmp_path / "folder", *how)
    a, b, c = (torch.tensor(np.load(tmp_path / f"{name}.npy")) for name in "abc")
    assert torch.equal(a, b) and torch.equal(a, c)
    assert len([path for path in (tmp_path / "cache" / "purify-engine" / "converted").iterdir() if path.is_dir()]) == 1
