"""Where purifiers come from: names, folders and the Hub in their order, networks frozen, what a folder holds."""

from __future__ import annotations

import errno
import json
import sys

import pytest
import torch

from purify_engine import devices, folders, presets
from purify_engine.config import PurifierConfig
from purify_engine.models.checkpoints.network import sha256
from purify_engine.purifier import GuidedPurifier
from tests.test_purifier import GUIDE, UNET, images, purifier


def saved(folder, **options):
    purifier(**options).save_pretrained(folder)
    return folder


def test_the_embedded_purifiers_are_listed_and_load():
    names = presets.list_purifiers()
    assert "digits" in names and names == sorted(names)
    for name in names:
        assert presets.resolve(name) == presets.EMBEDDED / name


@pytest.mark.parametrize("name", presets.list_purifiers())
def test_what_is_embedded_is_small_and_whole_and_every_network_has_its_card(name):
    folder = presets.resolve(name)
    config = folders.read_config(folder)
    assert sum(path.stat().st_size for path in folder.iterdir()) < 24e6
    for part in ("unet", "guide", "classifier"):
        assert part in config and f"`{part}.safetensors`" in (folder / f"{part}.md").read_text()
    for part, known in config.get("weights", {}).items():
        assert sha256(folder / f"{part}.safetensors") == known and known in (folder / f"{part}.md").read_text()
    assert folders.own_presets(config, folder).keys() == config.get("presets", {}).keys()


def test_an_embedded_name_comes_before_a_folder_and_a_folder_before_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(presets, "_from_hub", lambda name, revision: f"hub {name}")
    (tmp_path / "digits").mkdir()
    (tmp_path / "owner" / "here").mkdir(parents=True)
    assert presets.resolve("digits") == presets.EMBEDDED / "digits"
    assert str(presets.resolve("owner/here")) == "owner/here"
    assert presets.resolve("owner/there") == "hub owner/there"
    for name in ("nowhere", "a/b/c", str(tmp_path / "absent"), "weights/absent.pth", "./absent", "~/absent"):
        with pytest.raises(FileNotFoundError, match=r"embedded name \(.*digits.*\), a folder, or a Hub id"):
            presets.resolve(name)


def test_of_the_hub_only_weights_and_configurations_are_asked_for(tmp_path, hub, monkeypatch):
    hub.folders[None] = tmp_path
    assert presets.resolve("owner/name") == tmp_path
    assert hub.asked == [("owner/name", None, {"allow_patterns": ["*.json", "*.safetensors"]})]  # never a pickle
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(FileNotFoundError, match=r"pip install .purify-engine\[hub\]"):
        presets.resolve("owner/name")


def test_a_revision_names_what_the_hub_gives(small_purifier, tmp_path, hub):
    hub.folders |= {None: saved(tmp_path, gradient="bpda"), "v1": small_purifier}
    assert presets.load_networks("owner/name").config.gradient == "bpda"
    first = GuidedPurifier.from_pretrained("owner/name", revision="v1")
    assert first.config == presets.load_networks(small_purifier).config and first.config.gradient == "exact"
    classifier = presets.load_classifier("owner/name", revision="v1")
    assert torch.equal(classifier.linear.weight, presets.load_classifier(small_purifier).linear.weight)
    assert [revision for _, revision, _ in hub.asked] == [None, "v1", "v1"]


def test_a_revision_that_is_not_there_is_one_line_and_a_full_disk_stays_what_it_is(hub, monkeypatch):
    with pytest.raises(FileNotFoundError, match="'owner/name' at revision 'v9' cannot be had .* Not Found for v9$"):
        presets.resolve("owner/name", revision="v9")

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sys.modules["huggingface_hub"], "snapshot_download", full)
    with pytest.raises(OSError, match="No space left") as raised:
        presets.resolve("owner/name")
    assert raised.value.errno == errno.ENOSPC


def test_what_a_folder_says_itself_is_not_stated_beside_it(small_purifier):
    for name in ("digits", small_purifier):
        with pytest.raises(ValueError, match="^layout must be left out: config.json of .* says it.*, got 'score_sde'$"):
            GuidedPurifier.from_pretrained(name, layout="score_sde")
        with pytest.raises(ValueError, match=r"^mean must be left out: .*, got \(0\.5,\)$"):
            presets.load_classifier(name, mean=(0.5,))


def test_what_lies_here_has_no_revisions(tmp_path, hub):
    (tmp_path / "weights.pth").touch()
    for name in ("digits", saved(tmp_path / "folder"), tmp_path / "weights.pth"):
        for load in (presets.load_networks, presets.load_classifier):
            with pytest.raises(ValueError, match="revision must be None for an embedded name, a folder or a file.*got 'main'$"):
                load(name, revision="main")
    assert not hub.asked


@pytest.mark.parametrize("dtype", devices.NETWORK_DTYPES, ids=str)
def test_a_dtype_is_that_of_every_network(dtype, small_purifier):
    model = GuidedPurifier.from_pretrained(small_purifier, dtype=dtype)
    classifier = presets.load_classifier(small_purifier, dtype=dtype)
    assert {value.dtype for module in (model, classifier) for value in module.parameters()} == {dtype}
    assert devices.precision_of(model) in repr(model)
    logits = classifier(images(2, dtype=dtype))
    assert logits.dtype == dtype and logits.isfinite().all()


def test_a_purifier_in_float64_purifies_as_one_in_float32(tmp_path):
    folder = saved(tmp_path)
    single, double = (GuidedPurifier.from_pretrained(folder, dtype=dtype) for dtype in (torch.float32, torch.float64))
    single.execution = double.execution = "loop"
    x = images(2, dtype=torch.float64)
    given, exact = single(x, draw=1), double(x, draw=1)
    assert given.dtype == exact.dtype == torch.float64
    assert 0 < (given - exact).abs().max() < 1e-4  # float32's rounding, over the steps of a small network
    assert double(x.float(), draw=1).dtype == torch.float32


def test_of_two_ways_to_say_a_precision_one_is_said():
    with pytest.raises(ValueError, match=r"precision must be left out where dtype=torch.float64 says it, got 'bf16'$"):
        GuidedPurifier.from_pretrained("digits", precision="bf16", dtype=torch.float64)
    with pytest.raises(ValueError, match=r"precision must be left out where dtype=torch.float16 says it, got 'fp16'$"):
        GuidedPurifier.from_checkpoint("absent.pt", precision="fp16", dtype=torch.float16)
    for wrong in (torch.int8, torch.float8_e4m3fn, "float64"):
        with pytest.raises(ValueError, match=r"dtype must be one of torch.float32, torch.float64, .*, or None, got "):
            presets.load_classifier("digits", dtype=wrong)
    assert devices.asked_for() == "auto" and devices.asked_for("bf16") == "bf16"


def test_a_loaded_purifier_is_the_saved_one_frozen_and_evaluated(tmp_path):
    model = purifier(noise="fixed", seed=3, gradient="bpda")
    loaded = GuidedPurifier.from_pretrained(saved(tmp_path, noise="fixed", seed=3, gradient="bpda"))
    assert loaded.config == model.config
    assert loaded.denoiser.unet.config == UNET and loaded.guide.config == GUIDE
    for (name, own), (other, theirs) in zip(loaded.state_dict().items(), model.state_dict().items(), strict=True):
        assert name == other and torch.equal(own, theirs)
    assert not loaded.guide.training and not any(parameter.requires_grad for parameter in loaded.parameters())


def test_a_purifier_without_a_guide_is_saved_without_one(tmp_path):
    model = GuidedPurifier(purifier().denoiser, None, PurifierConfig(t_star=20, num_steps=2, noise="fixed"))
    model.save_pretrained(tmp_path / "deep" / "down")
    assert sorted(file.name for file in (tmp_path / "deep" / "down").iterdir()) == ["config.json", "unet.safetensors"]
    loaded = GuidedPurifier.from_pretrained(tmp_path / "deep" / "down")
    assert loaded.guide is None
    assert (loaded(images()) - model(images())).abs().max() < 1e-5


def test_a_configuration_says_what_it_is_of_and_leaves_out_what_is_not_there(tmp_path):
    content = json.loads((saved(tmp_path) / "config.json").read_text())
    assert set(content) == {"schema_version", "unet", "guide", "purifier"} and content["schema_version"] == 1
    folders.write_config(tmp_path, unet=UNET, guide=None, purifier=PurifierConfig())
    assert set(json.loads((tmp_path / "config.json").read_text())) == {"schema_version", "unet", "purifier"}


def test_a_classifier_beside_a_purifier_is_frozen_and_one_that_is_not_there_is_named(small_purifier, tmp_path):
    classifier = presets.load_classifier(small_purifier)
    assert not classifier.training and not any(parameter.requires_grad for parameter in classifier.parameters())
    guide = GuidedPurifier.from_pretrained(small_purifier).guide  # of another draw: each file is read for its own part
    assert not torch.equal(classifier.linear.weight, guide.linear.weight)
    with pytest.raises(ValueError, match="must be a purifier with a classifier beside it"):
        presets.load_classifier(saved(tmp_path))


@pytest.mark.parametrize("missing", ["unet", "purifier"])
def test_a_configuration_without_its_parts_is_refused(tmp_path, missing):
    path = saved(tmp_path) / "config.json"
    content = json.loads(path.read_text())
    for spoiled in ({key: value for key, value in content.items() if key != missing}, [content]):
        path.write_text(json.dumps(spoiled))
        with pytest.raises(ValueError, match="must be an object with unet and purifier"):
            GuidedPurifier.from_pretrained(tmp_path)
    path.write_text(json.dumps({key: value for key, value in content.items() if key != "schema_version"}))
    with pytest.raises(ValueError, match=r"schema_version of .* must be 1 for this release, got None"):
        GuidedPurifier.from_pretrained(tmp_path)
