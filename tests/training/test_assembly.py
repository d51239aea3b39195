"""From trained networks to a purifier: what may be trained beside what, and what the folder then says."""

import dataclasses
import json

import pytest
import torch

from purify_engine import GuidedPurifier
from purify_engine.config import (
    Assembly,
    ClassifierConfig,
    ClassifierTraining,
    DiffusionTraining,
    Perturbation,
    PurifierConfig,
    ScheduleConfig,
    TradesTraining,
    UNetConfig,
)
from purify_engine.folders import add_to_config, differing_classes
from purify_engine.models import Classifier, UNet, save_safetensors
from purify_engine.training.assembly import (
    assemble,
    contents,
    depth,
    is_finished,
    require_fitting,
    require_room,
    require_same,
    settled,
)
from purify_engine.training.record import remembered

UNET = UNetConfig(
    image_size=8, in_channels=1, base_channels=8, channel_mult=(1,), num_res_blocks=1, attention_resolutions=(), norm_groups=4
)
GUIDE = ClassifierConfig(architecture="cifar_resnet", depth=8, width=4, num_classes=2, in_channels=1, mean=(0.5,), std=(0.2,))
NAMES = ("cat", "dog")
IMAGES, LABELS = torch.linspace(0, 1, 4 * 64).view(4, 1, 8, 8), torch.tensor([0, 1, 0, 1])


def holding(folder, *, guide=True, t_max=50, t_star=0, names=NAMES):
    """A folder as the trainers leave it."""
    folder.mkdir(exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_safetensors(UNet(UNET), folder / "unet.safetensors")
        save_safetensors(Classifier(GUIDE), folder / "guide.safetensors")
    trained = {"unet": DiffusionTraining(t_max=t_max), "guide": TradesTraining(t_star=t_star) if guide else None}
    parts = {"unet": UNET, "guide": GUIDE} if guide else {"unet": UNET}
    add_to_config(folder, **parts, class_names={"guide": names if guide else None}, training=trained)
    return folder


@pytest.mark.parametrize(
    ("there", "says"),
    [
        ("unet.safetensors", "output must be a folder without unet.safetensors (--replace trains it again), got "),
        ("unet.checkpoint", "without unet.checkpoint (--resume goes on from it, --replace begins again), got "),
    ],
)
def test_what_is_there_is_trained_over_only_where_that_is_asked_for(there, says, tmp_path):
    require_room(tmp_path, "unet", resume=False, replace=False)
    (tmp_path / there).touch()
    with pytest.raises(ValueError) as refused:
        require_room(tmp_path, "unet", resume=False, replace=False)
    assert says in str(refused.value)
    for asked in ({"resume": True, "replace": False}, {"resume": False, "replace": True}):
        require_room(tmp_path, "unet", **asked)
    require_room(tmp_path, "guide", resume=False, replace=False)


def test_weights_beside_a_checkpoint_are_to_be_replaced(tmp_path):
    assert not is_finished(tmp_path, "unet")
    (tmp_path / "unet.safetensors").touch()
    assert is_finished(tmp_path, "unet")
    (tmp_path / "unet.checkpoint").touch()
    assert not is_finished(tmp_path, "unet")


@pytest.mark.parametrize(
    ("part", "changes", "says"),
    [
        ("classifier", {"in_channels": 3, "mean": (0.5,) * 3, "std": (0.2,) * 3}, "in_channels must be 1, as of the unet in "),
        ("classifier", {"num_classes": 3}, "num_classes must be 2, as of the guide in "),
        ("unet", {"in_channels": 3}, "in_channels must be 1, as of the guide in "),
    ],
)
def test_a_network_for_other_images_or_classes_is_refused(part, changes, says, tmp_path):
    base, how = (UNET, DiffusionTraining()) if part == "unet" else (GUIDE, ClassifierTraining())
    folder = holding(tmp_path / "made")
    require_fitting(folder, part, base, how, NAMES)
    with pytest.raises(ValueError, match=f"^{says}"):
        require_fitting(folder, part, dataclasses.replace(base, **changes), how, NAMES)


def test_class_folders_that_differ_from_those_of_the_network_beside_are_refused_with_the_difference(tmp_path):
    folder = holding(tmp_path / "made")
    with pytest.raises(ValueError) as refused:
        require_fitting(folder, "classifier", GUIDE, ClassifierTraining(), ("cat", "cow"))
    assert "source must be of the classes of the guide in " in str(refused.value)
    assert "missing 'dog'; not among them 'cow'" in str(refused.value)
    require_fitting(folder, "classifier", GUIDE, ClassifierTraining(), None)  # numbers alone, as of an array
    assert differing_classes(("a", "b"), ("b", "a")) == "in another order"


def test_a_guide_sees_no_noise_that_the_diffusion_model_does_not_know(tmp_path):
    folder = holding(tmp_path / "made", t_max=50, t_star=40)
    require_fitting(folder, "guide", GUIDE, TradesTraining(t_star=50), NAMES)
    with pytest.raises(ValueError, match=r"^t_star must be at most 50, the timesteps \(t_max\) of the U-Net in "):
        require_fitting(folder, "guide", GUIDE, TradesTraining(t_star=51), NAMES)
    with pytest.raises(ValueError, match="^schedule must be one for guide and U-Net in "):
        require_fitting(folder, "guide", GUIDE, TradesTraining(t_star=9, schedule=ScheduleConfig(kind="cosine")), NAMES)
    with pytest.raises(ValueError, match="^t_star must be at most 30, "):
        require_fitting(folder, "unet", UNET, DiffusionTraining(t_max=30))


@pytest.mark.parametrize(
    ("asked", "t_max", "t_star", "wanted"),
    [(None, None, 0, 70), (None, 50, 0, 50), (None, 200, 150, 150), (120, 200, 150, 120), (200, 200, 0, 200)],
)
def test_the_depth_is_asked_for_or_the_guides_and_never_beyond_what_was_trained(asked, t_max, t_star, wanted):
    unet, guide = DiffusionTraining(t_max=t_max), TradesTraining(t_star=t_star)
    assert depth(Assembly(t_star=asked), unet, guide) == wanted
    with pytest.raises(ValueError, match="^t_star must be at most 99, the timesteps that the U-Net is trained on, got 100$"):
        depth(Assembly(t_star=100), DiffusionTraining(t_max=99), guide)


def test_networks_become_a_purifier_whose_scale_is_calibrated_on_the_images_given(tmp_path, monkeypatch):
    asked = []
    note = lambda self, images, ratio: asked.append((self.config, images, ratio)) or 3.14159  # noqa: E731
    monkeypatch.setattr(GuidedPurifier, "calibrate", note)
    folder = holding(tmp_path / "made", t_star=30)
    config = assemble(folder, IMAGES, Assembly(ratio=0.5, num_steps=3, latent_weight=0.25), "four images")
    ((probed, images, ratio),) = asked
    assert torch.equal(images, IMAGES) and ratio == 0.5 and probed.guidance.scale == 1.0
    assert (config.t_star, config.num_steps, config.guidance.scale) == (30, 3, 3.142)
    assert config.guidance.latent_weight == 0.25 and config.schedule == DiffusionTraining().schedule
    assert GuidedPurifier.from_pretrained(folder).config == config
    said = json.loads((folder / "config.json").read_text())["training"]["purifier"]
    assert said["data"]["source"] == "four images" and said["data"]["sha256"] == remembered(IMAGES, None, "").sha256
    assert settled(folder) == Assembly(ratio=0.5, num_steps=3, latent_weight=0.25)
    assert contents(folder)["class_names"] == {"guide": list(NAMES)}, "what was there stays"


@pytest.mark.parametrize(
    ("how", "terms"),
    [
        ({}, (0.0, 1.0, "none")),
        ({"label_weight": 0.5}, (0.5, 1.0, "pseudo")),
        ({"label_weight": 1.0, "latent_weight": 0.0, "pseudo_label": "soft"}, (1.0, 0.0, "soft")),
    ],
)
def test_the_guides_features_guide_unless_its_label_is_asked_for(tmp_path, monkeypatch, how, terms):
    """With a pseudo-label the verdict is the guide's own answer: that is not what is assembled where nothing is said."""
    asked = []
    note = lambda self, images, ratio: asked.append((self.config.guidance, ratio)) or 3.0  # noqa: E731
    monkeypatch.setattr(GuidedPurifier, "calibrate", note)
    guidance = assemble(holding(tmp_path / "made", t_star=30), IMAGES, Assembly(num_steps=3, **how)).guidance
    ((probed, ratio),) = asked
    assert probed == dataclasses.replace(guidance, scale=1.0) and ratio == 0.8
    assert (guidance.label_weight, guidance.latent_weight, guidance.pseudo_label) == terms


def test_a_label_term_without_a_label_is_refused():
    with pytest.raises(ValueError, match=r"^pseudo_label must be pseudo or soft where label_weight is positive, got 'none'$"):
        Assembly(label_weight=0.5, pseudo_label="none")
    with pytest.raises(ValueError, match=r"^pseudo_label must be one of"):
        Assembly(pseudo_label="hope")


def test_without_a_guide_nothing_guides_and_without_a_diffusion_model_there_is_no_purifier(tmp_path):
    config = assemble(holding(tmp_path / "made", guide=False), IMAGES, Assembly())
    assert config == PurifierConfig(t_star=50, guidance=dataclasses.replace(config.guidance, kind="none", scale=0.0))
    add_to_config(tmp_path, guide=GUIDE)
    assert assemble(tmp_path, IMAGES, Assembly()) is None and "purifier" not in contents(tmp_path)


def test_finished_weights_are_those_of_the_same_training_alone(tmp_path):
    how = ClassifierTraining(attack=Perturbation(epsilon=0.1))
    data = remembered(IMAGES, LABELS, "here")
    record = {"data": dataclasses.asdict(data), **dataclasses.asdict(how)}
    add_to_config(tmp_path, classifier=GUIDE, training={"classifier": record})
    require_same(tmp_path, "classifier", GUIDE, how, IMAGES, LABELS)
    others = {
        "steps": (GUIDE, dataclasses.replace(how, steps=3), IMAGES, LABELS),
        "width": (dataclasses.replace(GUIDE, width=8), how, IMAGES, LABELS),
        "pixels": (GUIDE, how, 1 - IMAGES, LABELS),
        "labels": (GUIDE, how, IMAGES, 1 - LABELS),
    }
    for name, changed in others.items():
        with pytest.raises(ValueError, match=rf"^resume must be of the training that made classifier.safetensors .*'{name}': \("):
            require_same(tmp_path, "classifier", *changed)


@pytest.mark.parametrize("said", [3, [], {"unet": 3}, {"unet": {"t_max": "50"}}], ids=str)
def test_a_hand_edited_training_is_refused_in_one_line(said, tmp_path):
    folder = holding(tmp_path / "made", guide=False)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "training": said}))
    says = r"^(training\.\w+ of config\.json must be an object|DiffusionTraining\.t_max must be a whole number)"
    with pytest.raises(ValueError, match=says):
        assemble(folder, IMAGES, Assembly())
