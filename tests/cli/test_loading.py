"""From words on the command line to purifiers."""

import pytest
import torch

from purify_engine import GuidedPurifier
from purify_engine.cli.loading import image_shape, load_purifier
from purify_engine.cli.options import options_of
from purify_engine.config import GuidanceConfig, PurifierConfig
from purify_engine.data import ImageShape

SHAPE = ImageShape(1, 8)


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
