"""The presets that a purifier's folder names: validated where it is read, and asked for by the same option as a paper's."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest

from purify_engine import GuidedPurifier, presets
from purify_engine.cli.loading import PurifierToLoad
from purify_engine.config import PRESETS, PurifierConfig

FAST = {"about": "two steps", "num_steps": 2, "guidance": {"scale": 0.5}}
DEEP = {"t_star": 40, "num_steps": None}


@pytest.fixture
def folder(small_purifier, tmp_path):
    """Makes a folder with presets."""

    def made(**named):
        copy = tmp_path / "purifier"
        shutil.copytree(small_purifier, copy, dirs_exist_ok=True)
        config = json.loads((copy / "config.json").read_text())
        (copy / "config.json").write_text(json.dumps({**config, "presets": named}))
        return copy

    return made


def test_a_preset_is_what_is_saved_but_for_what_it_names(folder):
    made = folder(deep=DEEP, fast=FAST)
    saved = GuidedPurifier.from_pretrained(made).config
    fast = GuidedPurifier.from_pretrained(made, preset="fast").config
    assert fast == dataclasses.replace(saved, num_steps=2, guidance=dataclasses.replace(saved.guidance, scale=0.5))
    assert GuidedPurifier.from_pretrained(made, preset="deep").num_steps == 40
    assert presets.presets_of(made) == {"deep": dataclasses.replace(saved, t_star=40, num_steps=None), "fast": fast}
    assert GuidedPurifier.from_pretrained(made, preset="diffpure-cifar10-linf").config == PRESETS["diffpure-cifar10-linf"].config


def test_an_unknown_name_is_refused_with_those_of_the_folder_and_of_papers(folder, small_purifier):
    said = r"^preset must be one of deep, fast \(of this purifier\) or diffpure-cifar10-linf, .* \(of papers\), got 'slow'$"
    with pytest.raises(ValueError, match=said):
        GuidedPurifier.from_pretrained(folder(deep=DEEP, fast=FAST), preset="slow")
    assert presets.presets_of(small_purifier) == {}
    with pytest.raises(ValueError, match="^preset must be one of diffpure-cifar10-linf, .*, got 'fast'$"):
        GuidedPurifier.from_pretrained(small_purifier, preset="fast")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_steps": 31}, r"num_steps must be in \[1, t_star=30\], got 31"),
        ({"steps": 2}, "PurifierConfig must be given only .*, got 'steps'"),
        ({"guidance": {"scale": "strong"}}, "GuidanceConfig.scale must be a number, got 'strong'"),
        ({"guidance": 0.5}, "guidance must be an object of its fields, got 0.5"),
        ({"schedule": {}}, "schedule must be left out: the diffusion model has one, got {}"),
        ({"about": 3}, "about must be a text, got 3"),
    ],
    ids=["range", "field", "type", "guidance", "schedule", "about"],
)
def test_an_impossible_preset_is_refused_wherever_the_folder_is_read(changes, said, folder):
    made = folder(fast=FAST, broken=changes)
    for read in (GuidedPurifier.from_pretrained, presets.presets_of):
        with pytest.raises(ValueError, match=rf"^presets\.broken of .*config\.json is impossible: {said}$"):
            read(made)


def test_presets_are_objects_and_none_is_called_as_a_papers(folder):
    with pytest.raises(ValueError, match=r"presets\.agdm-cifar10 of .* must be called otherwise than a paper's preset"):
        GuidedPurifier.from_pretrained(folder(**{"agdm-cifar10": FAST}))
    with pytest.raises(ValueError, match=r"presets\.fast of .* must be an object of what differs from purifier, got 2"):
        GuidedPurifier.from_pretrained(folder(fast=2))


def test_the_command_line_takes_a_folders_presets_and_its_other_options_win(folder, command, tmp_path):
    made = folder(fast=FAST)
    np.savez(tmp_path / "in.npz", images=np.random.RandomState(0).rand(3, 1, 8, 8).astype(np.float32))
    words = ("--purifier", made, "--preset", "fast", "--num-steps", 1)
    code, _, err = command("purify", tmp_path / "in.npz", tmp_path / "out.npz", *words)
    assert code == 0, err
    config = json.loads((tmp_path / "out.run.json").read_text())["config"]
    assert config["num_steps"] == 1 and config["guidance"]["scale"] == 0.5
    code, _, err = command("bench", *words[:2], "--preset", "slow")
    assert code == 2 and "one of fast (of this purifier) or" in err and err.count("\n") == 1
    code, _, err = command("bench", "--purifier", "ddpm-cifar10", "--preset", "fast")
    assert code == 2 and "preset must be left out: ddpm-cifar10 has random weights" in err


def test_which_images_a_preset_takes_is_read_off_its_folder_alone(folder):
    made = folder(any_size={"sizes": "tile"}, fast=FAST)
    tiled, exact = (PurifierToLoad(str(made), None, preset=preset) for preset in ("any_size", "fast"))
    assert tiled.image_shape().size is None and exact.image_shape().size == 8
    assert not tiled.load.cache_info().currsize and not exact.load.cache_info().currsize
    assert isinstance(PurifierConfig(), type(tiled.load().config)) and tiled.load().config.sizes == "tile"
