"""From words on the command line to images and purifiers."""

import numpy as np
import pytest
import torch

from purify_engine import GuidedPurifier
from purify_engine.cli.loading import image_shape, labelled_images, load_purifier, training_images
from purify_engine.cli.options import options_of
from purify_engine.config import GuidanceConfig, PurifierConfig
from purify_engine.data import ImageShape, digits

SHAPE = ImageShape(1, 8)


@pytest.fixture
def source(tmp_path):
    images = np.random.RandomState(0).rand(5, 1, 8, 8).astype(np.float32)
    np.savez(tmp_path / "in.npz", images=images, labels=np.arange(5))
    return str(tmp_path / "in.npz"), torch.tensor(images)


def test_digits_are_the_split_that_is_named_and_the_training_ones_by_default():
    train, test = digits("train"), digits("test")
    assert torch.equal(training_images("digits", SHAPE), train[0])
    for got, wanted in ((labelled_images("digits", SHAPE), train), (labelled_images("digits", SHAPE, split="test"), test)):
        assert torch.equal(got[0], wanted[0]) and torch.equal(got[1], wanted[1])


def test_other_sources_are_read_whole(source):
    path, images = source
    assert torch.equal(training_images(path, SHAPE), images)
    read, labels = labelled_images(path, SHAPE, split="test")
    assert torch.equal(read, images) and labels.tolist() == [0, 1, 2, 3, 4]


def test_labels_are_asked_for(tmp_path):
    np.savez(tmp_path / "bare.npz", images=np.zeros((2, 1, 8, 8), np.float32))
    with pytest.raises(
        ValueError, match=r"^source must have labels \(class folders, or an array `labels` in a .npz file\), got '"
    ):
        labelled_images(str(tmp_path / "bare.npz"), SHAPE)


def test_a_purifier_is_loaded_with_the_options_in_place_and_no_others(small_purifier):
    saved = GuidedPurifier.from_pretrained(small_purifier).config
    assert load_purifier(str(small_purifier)).config == saved
    guidance = options_of(GuidanceConfig, saved=True)(scale=2.5)
    changed = load_purifier(str(small_purifier), options_of(PurifierConfig, saved=True)(seed=4, guidance=guidance)).config
    assert changed.seed == 4 and changed.guidance.scale == 2.5 and changed.t_star == saved.t_star


def test_a_preset_that_guides_nothing_yet_is_told_of_where_no_option_gives_a_scale(small_purifier, capsys):
    load_purifier(str(small_purifier), preset="agdm-cifar10")
    said = capsys.readouterr()
    assert said.err.startswith("purify-engine: agdm-cifar10 has no published scale: nothing guides until") and not said.out
    guidance = options_of(GuidanceConfig, saved=True)(scale=2.5)
    loaded = load_purifier(str(small_purifier), options_of(PurifierConfig, saved=True)(guidance=guidance), preset="agdm-cifar10")
    assert loaded.config.guidance.scale == 2.5 and not capsys.readouterr().err


def test_the_shape_is_what_the_network_was_built_for(small_purifier):
    assert image_shape(load_purifier(str(small_purifier))) == SHAPE


def test_a_purifier_is_loaded_in_the_precision_asked_for_on_the_device_that_is_there(small_purifier):
    loaded = load_purifier(str(small_purifier), device="cpu", precision="bf16")
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    with pytest.raises(ValueError, match=r"^device must be .* got 'cuda:99'$"):
        load_purifier(str(small_purifier), device="cuda:99")
