"""Recipes: what they say, that they are followed, and what stands in the folder, its cards and its packed copy afterwards."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest
import torch
from safetensors.torch import load_file

from purify_engine import GuidedPurifier, UNet, load_classifier
from purify_engine.config import (
    Assembly,
    ClassifierConfig,
    ClassifierTraining,
    DiffusionTraining,
    Perturbation,
    TradesTraining,
    UNetConfig,
)
from purify_engine.folders import read_config
from purify_engine.models import Classifier
from purify_engine.models.checkpoints.network import sha256
from purify_engine.training.packing import pack
from purify_engine.training.recipes import RECIPES, NamedPreset, Part, Recipe
from purify_engine.training.recipes.run import Examples, home, rows_of_all_classes, train_recipe

ATTACK = Perturbation(num_steps=1)
NETWORK = ClassifierConfig(architecture="cifar_resnet", depth=8, width=4, num_classes=2, in_channels=1, mean=(0.5,), std=(0.3,))
LIGHT = {"steps": 1, "batch_size": 4, "precision": "float32"}
UNET = UNetConfig(
    image_size=8, in_channels=1, base_channels=8, channel_mult=(1,), num_res_blocks=1, attention_resolutions=(), norm_groups=4
)
TOY = Recipe(
    name="toy",
    data="Dark and bright squares.",
    classes=("dark", "bright"),
    parts={
        "classifier": Part(network=NETWORK, training=ClassifierTraining(**LIGHT, attack=ATTACK), share=0.5),
        "guide": Part(network=NETWORK, training=TradesTraining(**LIGHT, attack=ATTACK, t_star=20), share=0.3),
        "unet": Part(network=UNET, training=DiffusionTraining(**LIGHT, warmup_steps=0, t_max=20), share=0.2),
        "guide-other": Part(network=NETWORK, training=TradesTraining(**LIGHT, attack=ATTACK, seed=1), share=0.0),
    },
    assembly=Assembly(t_star=6, num_steps=2, ratio=0.5, calibration_images=4, sizes="tile"),
    presets={
        "slow": NamedPreset(t_star=6, num_steps=None, about="Every step."),
        "middle": NamedPreset(t_star=6, num_steps=2, about="As it is."),
        "fast": NamedPreset(t_star=6, num_steps=1, about="One step."),
    },
    validation=2,
)
LABELS = torch.tensor([0, 1] * 5)
IMAGES = (
    0.2 + 0.5 * LABELS.view(-1, 1, 1, 1) + 0.1 * torch.rand(10, 1, 8, 8, generator=torch.Generator().manual_seed(0))
).float()
DATA = Examples(images=IMAGES[:8], labels=LABELS[:8], held_out=(IMAGES[8:], LABELS[8:]), said="The last 2 are a validation set.")
COMMAND = "purify-engine train recipe toy out --data in.npz"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The toy recipe's folder, followed to its end."""
    folder = tmp_path_factory.mktemp("recipe") / "out"
    done = train_recipe(TOY, DATA, folder, command=COMMAND)
    assert set(done.purifiers) == {folder, folder / "guide-other"} and not done.kept
    return folder


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=lambda recipe: recipe.name)
def test_every_recipe_fits_together(recipe):
    networks = {name: part.network for name, part in recipe.parts.items()}
    trainings = {name: part.training for name, part in recipe.parts.items()}
    deepest = trainings["unet"].t_max or trainings["unet"].schedule.num_timesteps
    for name, part in recipe.parts.items():
        assert part.kind == ("unet" if name == "unet" else "classifier" if name == "classifier" else "guide")
        assert part.network.in_channels == networks["unet"].in_channels and part.share >= 0
        if part.kind != "unet":
            assert part.network.num_classes == len(recipe.classes) == len(set(recipe.classes))
        if part.kind == "guide":
            assert part.network.activation == "silu" and part.training.t_star <= deepest
    for t_star in (recipe.assembly.t_star, *(preset.t_star for preset in recipe.presets.values())):
        assert 1 <= t_star <= deepest and trainings["guide"].t_star >= t_star
    families = [(networks[name].architecture, networks[name].width) for name in ("guide", "classifier")]
    assert families[0] != families[1]


def test_the_sizes_of_the_networks_are_those_that_are_promised():
    def parameters(name, part, kind=UNet):
        with torch.device("meta"):
            return sum(weight.numel() for weight in kind(RECIPES[name].parts[part].network).parameters())

    assert parameters("cifar10-small", "unet") < 4e6
    assert parameters("cifar10", "unet") == 35_746_307 and RECIPES["cifar100"].parts["unet"] == RECIPES["cifar10"].parts["unet"]
    small = sum(parameters("cifar10-small", *words) for words in (("unet",), ("guide", Classifier), ("classifier", Classifier)))
    assert 2 * small < 23e6
    assert {"guide", "guide-clean", "guide-l2", "guide-wide"} <= set(RECIPES["cifar10"].parts)
    attacks = {name: part.training.attack for name, part in RECIPES["cifar10"].parts.items() if part.kind == "guide"}
    assert {(attack.norm, attack.epsilon) for attack in attacks.values()} == {("linf", 8 / 255), ("l2", 0.5)}


def test_the_folder_is_a_purifier_with_a_scale_of_its_own_for_every_preset(made):
    purifier = GuidedPurifier.from_pretrained(made)
    guidance = purifier.config.guidance
    assert (guidance.label_weight, guidance.latent_weight, guidance.pseudo_label) == (0, 1, "none") and guidance.scale > 0
    assert purifier.config.sizes == "tile" and purifier.config.num_steps == 2
    again = float(f"{purifier.configured(guidance=dataclasses.replace(guidance, scale=1.0)).calibrate(IMAGES[:4], 0.5):.4g}")
    assert guidance.scale == pytest.approx(again, rel=1e-3)
    said = read_config(made)["presets"]
    assert list(said) == ["slow", "middle", "fast"] and said["middle"]["guidance"] == {"scale": guidance.scale}
    assert GuidedPurifier.from_pretrained(made, preset="slow").num_steps == 6
    assert len({preset["guidance"]["scale"] for preset in said.values()}) == 3
    assert load_classifier(made).class_names == TOY.classes


def test_a_further_guide_has_a_purifier_of_its_own_around_the_same_diffusion_model(made):
    other, first = GuidedPurifier.from_pretrained(made / "guide-other"), GuidedPurifier.from_pretrained(made)
    assert torch.equal(other.denoiser.unet.conv_in.weight, first.denoiser.unet.conv_in.weight)
    assert not torch.equal(other.guide.linear.weight, first.guide.linear.weight)
    assert other.config.num_steps == 2 and other.config.guidance.scale > 0 and home(made, "guide-other") == made / "guide-other"


def test_cards_name_recipe_command_data_and_the_hashes_of_the_weights(made):
    for part in ("unet", "guide", "classifier"):
        card, weights = (made / f"{part}.md").read_text(), made / f"{part}.safetensors"
        assert f"## Recipe\n`toy`, last by `{COMMAND}`.\n" in card and "The last 2 are a validation set." in card
        assert f"SHA-256 of the weights: `{sha256(weights)}`" in card
        assert "held-out: " in card
    card = (made / "purifier.md").read_text()
    assert re.search(r"^\| slow \| 6 \| 6 \| [\d.]+ \| Every step\. \|$", card, re.MULTILINE)
    assert all(sha256(made / f"{part}.safetensors") in card for part in ("unet", "guide", "classifier")) and COMMAND in card


def test_what_is_finished_is_kept_and_never_trained_over(made, tmp_path):
    before = {path: path.read_bytes() for path in made.rglob("*.safetensors")}
    with pytest.raises(ValueError, match="output must be a folder without classifier.safetensors"):
        train_recipe(TOY, DATA, made)
    assert train_recipe(TOY, DATA, made, resume=True).kept == list(TOY.parts)
    other = dataclasses.replace(DATA, images=DATA.images.flip(-1))
    with pytest.raises(ValueError, match="resume must be of the training that made classifier.safetensors"):
        train_recipe(TOY, other, made, resume=True)
    assert {path: path.read_bytes() for path in made.rglob("*.safetensors")} == before


def test_parts_are_trained_alone_and_labels_are_looked_at_before_the_first(tmp_path):
    with pytest.raises(ValueError, match="part must be one of classifier, guide, unet, guide-other of the recipe toy, got 'net'"):
        train_recipe(TOY, DATA, tmp_path, parts=["net"])
    wrong = dataclasses.replace(DATA, held_out=(IMAGES[8:], torch.tensor([0, 2])))
    with pytest.raises(ValueError, match=r"^labels\[1\] must be in \[0, 2\), the network's classes, got 2$"):
        train_recipe(TOY, wrong, tmp_path, parts=["guide", "unet"])
    wide = dataclasses.replace(DATA, images=IMAGES[:8, :, :4])
    with pytest.raises(ValueError, match="images must be of 8x8 pixels"):
        train_recipe(TOY, wide, tmp_path, parts=["unet"])
    assert not list(tmp_path.iterdir())
    assert train_recipe(TOY, DATA, tmp_path, parts=["guide"]).purifiers == {}
    assert [path.name for path in tmp_path.glob("*.safetensors")] == ["guide.safetensors"]


def test_seconds_are_shared_among_the_parts_that_are_asked_for(monkeypatch, tmp_path):
    from purify_engine.training.recipes import run

    given = {}
    for name, trainer in (("classifier", "train_classifier"), ("guide", "train_trades"), ("unet", "train_diffusion")):
        monkeypatch.setattr(run, trainer, lambda *_, name=name, **how: given.setdefault(name, how["seconds"]))
    monkeypatch.setattr(run.cards, "say_made", lambda *_: None)
    monkeypatch.setattr(run, "_assembled", lambda *_: None)
    train_recipe(TOY, DATA, tmp_path, seconds=100)
    assert given == pytest.approx({"classifier": 50, "guide": 30, "unet": 20})
    given.clear()
    train_recipe(TOY, DATA, tmp_path, parts=["unet"], seconds=100)
    assert given == {"unet": 100}
    given.clear()
    train_recipe(TOY, DATA, tmp_path, parts=["guide"])
    assert given == {"guide": None}


def test_rows_are_the_first_or_the_last_and_of_every_class_where_they_are_sorted():
    assert rows_of_all_classes(LABELS, 3, last=True) == [7, 8, 9] and rows_of_all_classes(LABELS, 3, last=False) == [0, 1, 2]
    by_class = torch.arange(4).repeat_interleave(10)
    assert by_class[rows_of_all_classes(by_class, 8, last=True)].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert rows_of_all_classes(LABELS[:1], 3, last=True) == [0] and rows_of_all_classes(by_class, 50, last=False)[-1] == 39


@pytest.mark.parametrize(("precision", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_a_packed_purifier_is_half_the_size_and_computes_in_float32_what_it_holds(precision, dtype, made, tmp_path):
    size = pack(made, tmp_path / "packed", precision)
    assert size == sum(path.stat().st_size for path in (tmp_path / "packed").iterdir())
    for part in ("unet", "guide", "classifier"):
        whole, half = (load_file(folder / f"{part}.safetensors") for folder in (made, tmp_path / "packed"))
        for name, tensor in whole.items():
            is_halved = tensor.is_floating_point() and tensor.dim() > 1
            assert half[name].dtype == (dtype if is_halved else tensor.dtype)
            assert torch.equal(half[name], tensor.to(half[name].dtype))
    first, packed = (GuidedPurifier.from_pretrained(folder, dtype=torch.float32) for folder in (made, tmp_path / "packed"))
    assert packed.dtype == torch.float32 and packed.config == first.config
    config = read_config(tmp_path / "packed")
    assert config["precision"] == precision and config["presets"] == read_config(made)["presets"]
    for part, known in config["weights"].items():
        card = (tmp_path / f"packed/{part}.md").read_text()
        assert known == sha256(tmp_path / "packed" / f"{part}.safetensors")
        assert card.count(known) == 2 and sha256(made / f"{part}.safetensors") not in card and precision in card
    with pytest.raises(ValueError, match="output must be a new or an empty folder"):
        pack(made, tmp_path / "packed", precision)


def test_what_16_bits_cannot_hold_and_what_is_no_trained_purifier_is_not_packed(made, small_purifier, tmp_path, monkeypatch):
    from purify_engine.training import packing

    with pytest.raises(
        ValueError, match=r"folder must be a purifier that was trained here, with its cards, got .* without unet\.md"
    ):
        pack(small_purifier, tmp_path / "packed")
    monkeypatch.setattr(packing, "load_file", lambda _: {"conv.weight": torch.full((2, 2), 7e4)})
    with pytest.raises(
        ValueError, match=r"^conv\.weight of unet\.safetensors must be at most 65504 \(or --precision bf16\), got 7"
    ):
        pack(made, tmp_path / "packed")
    assert not list(tmp_path.iterdir()) and json.loads((made / "config.json").read_text())["recipe"]["recipe"] == "toy"
