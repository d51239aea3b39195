"""Published files into purifiers: what is written, what is read back, what it says of its origin, and what is refused."""

from __future__ import annotations

import copy
import hashlib
import json
import warnings
from dataclasses import replace

import pytest
import torch

from purify_engine import GuidedPurifier, conversion, load_classifier
from purify_engine.config import PRESETS, ClassifierConfig, GuidanceConfig, PurifierConfig, ScheduleConfig, UNetConfig
from purify_engine.conversion import Stated, convert, purifier_of
from purify_engine.models import Classifier, UNet, published
from purify_engine.models.checkpoints import classifier, registry
from purify_engine.models.checkpoints.network import Published
from tests.models.checkpoints import tiny_layout


@pytest.fixture(autouse=True)
def tiny(monkeypatch, tmp_path):
    """Only the layout of the tests is known, and the cache is a folder of its own."""
    monkeypatch.setattr(registry, "UNETS", (tiny_layout.UNET,))
    for module in (registry, classifier):
        monkeypatch.setattr(module, "CLASSIFIERS", (tiny_layout.CLASSIFIER,))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def network(seed=0, num_classes=10):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = UNet(UNetConfig(**tiny_layout.SMALL, in_channels=1))
        for parameter in unet.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        guide = Classifier(tiny_layout.recognise_classifier({"linear.weight": (num_classes, 16)}, {}))
    return unet.eval().requires_grad_(False), guide.eval().requires_grad_(False)


def saved(path, module, dtype=torch.float32):
    weights = {f"module.net.{name}": value for name, value in copy.deepcopy(module).to(dtype).state_dict().items()}
    torch.save({"state_dict": weights, "step": 1}, path)
    return path


@pytest.fixture(scope="module")
def networks():
    return network()


@pytest.fixture
def checkpoints(tmp_path, networks):
    return saved(tmp_path / "unet.pth", networks[0]), saved(tmp_path / "guide.pth", networks[1])


IMAGES = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def same_weights(module, known):
    theirs = known.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in module.state_dict().items())


def test_a_converted_purifier_is_the_network_of_the_file(tmp_path, checkpoints, networks):
    unet, guide = checkpoints
    convert(unet, tmp_path / "out", guide=guide, classifier=guide)
    loaded = GuidedPurifier.from_pretrained(tmp_path / "out")
    assert same_weights(loaded.denoiser.unet, networks[0]) and same_weights(loaded.guide, networks[1])
    assert same_weights(load_classifier(tmp_path / "out"), networks[1])
    assert loaded.config.schedule == tiny_layout.COSINE
    x, t = 2 * IMAGES - 1, torch.tensor([3, 70])
    assert torch.equal(loaded.denoiser.unet(x, t), networks[0](x, t))
    loaded.save_pretrained(tmp_path / "again", classifier=loaded.guide)
    assert same_weights(GuidedPurifier.from_pretrained(tmp_path / "again").denoiser.unet, networks[0])
    assert same_weights(load_classifier(tmp_path / "again"), networks[1])


def test_where_it_came_from_is_written_and_is_the_same_another_time(tmp_path, checkpoints):
    unet, guide = checkpoints
    for name in ("one", "two"):
        convert(unet, tmp_path / name, guide=guide)
    one, two = ({file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert one == two and sorted(one) == ["config.json", "guide.safetensors", "unet.safetensors"]
    origin = json.loads(one["config.json"])["origin"]
    digest = hashlib.sha256(unet.read_bytes()).hexdigest()
    size, told = unet.stat().st_size, {"layout": "tiny", "says": ["the weights of 'state_dict'"]}
    assert origin["unet"] == {"file": "unet.pth", "bytes": size, "sha256": digest} | told
    assert origin["guide"]["layout"] == "tiny-classifier"


def test_a_layout_that_is_said_is_that_of_the_first_file(tmp_path, checkpoints, networks):
    unet, guide = checkpoints
    convert(unet, tmp_path / "out", guide=guide, classifier=guide, stated=Stated(layout="tiny"))
    assert same_weights(load_classifier(tmp_path / "out"), networks[1])


def test_a_classifier_alone_becomes_a_folder_that_is_read_as_one(tmp_path, checkpoints, networks):
    convert(checkpoints[1], tmp_path / "out")
    assert same_weights(load_classifier(tmp_path / "out"), networks[1])
    with pytest.raises(ValueError, match="config.json must be an object with unet and purifier"):
        GuidedPurifier.from_pretrained(tmp_path / "out")
    with pytest.raises(ValueError, match="classifier must be left out where .*guide.pth is a classifier"):
        convert(checkpoints[1], tmp_path / "other", classifier=checkpoints[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)
def test_weights_of_another_width_become_float32(tmp_path, networks, dtype):
    convert(saved(tmp_path / "half.pth", networks[0], dtype), tmp_path / "out")
    weight = GuidedPurifier.from_pretrained(tmp_path / "out").denoiser.unet.conv_in.weight
    assert weight.dtype == torch.float32 and torch.equal(weight, networks[0].conv_in.weight.to(dtype).float())


def test_weights_are_stored_in_16_bits_where_that_is_asked_for(tmp_path, checkpoints, networks):
    for precision in ("float32", "bf16"):
        convert(checkpoints[0], tmp_path / precision, precision=precision)
    size = {name: (tmp_path / name / "unet.safetensors").stat().st_size for name in ("float32", "bf16")}
    assert size["bf16"] < 0.7 * size["float32"]
    assert json.loads((tmp_path / "bf16" / "config.json").read_text())["precision"] == "bf16"
    weight = GuidedPurifier.from_pretrained(tmp_path / "bf16").denoiser.unet.conv_in.weight
    assert torch.equal(weight, networks[0].conv_in.weight.bfloat16().float())


def test_a_purifier_from_parts_is_the_converted_one(tmp_path, checkpoints):
    unet, guide = checkpoints
    how = {"t_star": 20, "num_steps": 2, "noise": "fixed", "guidance": GuidanceConfig(scale=1.0)}
    convert(unet, tmp_path / "out", guide=guide)
    parts = GuidedPurifier.from_checkpoint(unet, guide, **how)
    assert torch.equal(parts(IMAGES), GuidedPurifier.from_pretrained(tmp_path / "out").configured(**how)(IMAGES))
    assert parts.config.schedule == tiny_layout.COSINE
    wide = GuidedPurifier.from_checkpoint(unet, network={"image_size": 16}, dtype=torch.float64)
    assert next(wide.parameters()).dtype == torch.float64
    assert wide.denoiser.unet.config.image_size == 16
    assert not any(parameter.requires_grad for parameter in parts.parameters()) and not parts.training


def test_what_is_stated_of_a_network_reaches_it(tmp_path, checkpoints):
    unet, guide = checkpoints
    stated = Stated(unet={"image_size": 16}, guide={"mean": (0.5,), "std": (1.0,)}, classifier={"mean": (0.0,), "std": (0.2,)})
    made = convert(unet, tmp_path / "out", guide=guide, classifier=guide, stated=stated)
    configs = [made.networks[part].config for part in ("unet", "guide", "classifier")]
    assert (configs[0].image_size, configs[1].mean, configs[2].std) == (16, (0.5,), (0.2,))
    assert load_classifier(guide, mean=(0.1,), std=(1.0,)).config.mean == (0.1,)


def spoiled(checkpoint, path, change):
    weights = torch.load(checkpoint, weights_only=True)["state_dict"]
    change(weights)
    torch.save(weights, path)
    return path


def wrong_shape(weights):
    weights["module.net.conv_in.bias"] = torch.zeros(9)


def half_missing(weights):
    for name in list(weights)[len(weights) // 2 :]:
        del weights[name]


def left_over(weights):
    weights["module.net.extra.weight"] = torch.zeros(1)


def another(weights):
    weights.clear()
    weights["fc.weight"] = torch.zeros(1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (wrong_shape, r"'net.conv_in.bias' must make conv_in.bias of shape \(8,\), got \(9,\)"),
        (half_missing, "is no whole tiny checkpoint: it lacks 'net"),
        (left_over, "holds 'net.extra.weight', for which tiny has no place"),
        (another, "must have the layout tiny or tiny-classifier, got a file with 'fc.weight'"),
    ],
)
def test_weights_that_do_not_fit_are_refused_and_nothing_is_written(tmp_path, checkpoints, change, said):
    path = spoiled(checkpoints[0], tmp_path / "spoiled.pth", change)
    with pytest.raises(ValueError, match=said) as error:
        convert(path, tmp_path / "out")
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["guide.pth", "spoiled.pth", "unet.pth"]


def test_a_layout_is_taken_by_its_name_and_an_unknown_one_is_refused(tmp_path, checkpoints):
    assert convert(checkpoints[0], tmp_path / "out", stated=Stated(layout="tiny")).networks["unet"].layout == "tiny"
    with pytest.raises(ValueError, match="layout must be one of tiny, tiny-classifier, got 'edm'"):
        convert(checkpoints[0], tmp_path / "b", stated=Stated(layout="edm"))
    with pytest.raises(ValueError, match="must have the layout tiny-classifier, got a file with 'module.net.conv_in"):
        convert(checkpoints[0], tmp_path / "c", stated=Stated(layout="tiny-classifier"))


def test_what_is_there_is_not_overwritten_and_a_failed_write_leaves_nothing(tmp_path, checkpoints, monkeypatch):
    (tmp_path / "out").mkdir()
    convert(checkpoints[0], tmp_path / "out")  # an empty folder is taken
    with pytest.raises(ValueError, match="output must be a new or an empty folder, got "):
        convert(checkpoints[0], tmp_path / "out")

    def full(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(conversion, "write_config", full)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(OSError, match="disk full"):
        convert(checkpoints[0], tmp_path / "new")
    assert sorted(tmp_path.iterdir()) == before


def test_a_classifier_configuration_is_what_the_folder_says(tmp_path, checkpoints):
    convert(checkpoints[1], tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert ClassifierConfig(**config["classifier"]).num_classes == 10 and "purifier" not in config


def read(config, **known):
    return Published("a layout", config, {}, ScheduleConfig(), (), **known)


@pytest.mark.parametrize(
    ("config", "preset"),
    [
        (published.DDPMPP_DEEP_CIFAR10, "diffpure-cifar10-linf"),
        (replace(published.ADM_IMAGENET256, dropout=0.5), "diffpure-imagenet"),
        (published.DDPM_CELEBAHQ256, "diffpure-celebahq"),
        (published.DDPM_CIFAR10, "gdmp-cifar10"),
        (UNetConfig(**tiny_layout.SMALL), None),
    ],
)
def test_a_published_network_purifies_as_the_first_preset_that_is_for_it(config, preset):
    how = purifier_of(read(config))
    assert how.preset == preset and how.config == (PRESETS[preset].config if preset else PurifierConfig())
    assert purifier_of(read(config), "diffpure-cifar10-l2").config == PRESETS["diffpure-cifar10-l2"].config


def test_what_lies_beside_a_network_says_how_it_samples_and_is_begun_at_our_depth():
    how = purifier_of(
        read(published.DDPM_CIFAR10, sampling={"sampler": "ddim", "timesteps": (999, 90, 60, 30), "landings": (90, 60, 30, 0)})
    )
    assert how.preset is None and (how.config.sampler, how.config.t_star) == ("ddim", 61)
    assert (how.config.timesteps, how.config.landings) == ((60, 30), (30, 0))


def test_a_preset_for_other_noise_or_an_unknown_one_is_refused():
    other = read(published.IMPROVED_CIFAR10)._replace(schedule=published.IMPROVED_SCHEDULE)
    assert purifier_of(other).config.schedule == published.IMPROVED_SCHEDULE
    with pytest.raises(
        ValueError, match=r"preset must be one for the noise that the network was trained on \(4000 timesteps, cosine"
    ):
        purifier_of(other, "diffpure-imagenet")
    with pytest.raises(ValueError, match="preset must be one of diffpure-cifar10-linf, .*, got 'diffpure'"):
        purifier_of(other, "diffpure")


def test_adversarial_guidance_without_a_guide_is_refused_before_anything_is_written(tmp_path, checkpoints):
    with pytest.raises(ValueError, match="guide must be the checkpoint of one, as the guidance is adversarial"):
        convert(checkpoints[0], tmp_path / "out", configured=lambda config: replace(config, guidance=GuidanceConfig(scale=1.0)))
    assert not (tmp_path / "out").exists()


def test_a_preset_without_a_published_scale_says_that_nothing_guides_yet(small_purifier, monkeypatch):
    networks, how = GuidedPurifier.from_pretrained(small_purifier), PRESETS["agdm-cifar10"].config
    monkeypatch.setattr("purify_engine.presets.load_unet", lambda *given: (networks.denoiser, how))
    parts = "network.pt", networks.guide
    said = r"^agdm-cifar10 has no published scale: nothing guides until guidance.scale is purifier.calibrate\(.*, 0.8\)$"
    with pytest.warns(UserWarning, match=said):
        assert GuidedPurifier.from_checkpoint(*parts, preset="agdm-cifar10").config == how
    with pytest.warns(UserWarning, match=said):
        assert GuidedPurifier.from_pretrained(small_purifier, preset="agdm-cifar10").config.guidance == how.guidance
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scaled = replace(how.guidance, scale=2.0)
        assert GuidedPurifier.from_checkpoint(*parts, preset="agdm-cifar10", guidance=scaled).config.guidance == scaled


def test_a_saved_purifier_takes_a_preset_in_place_of_its_own_configuration(small_purifier):
    how = PRESETS["diffpure-cifar10-l2"].config
    assert GuidedPurifier.from_pretrained(small_purifier, preset="diffpure-cifar10-l2").config == how
    with pytest.raises(ValueError, match="preset must be one of"):
        GuidedPurifier.from_pretrained(small_purifier, preset="none")
