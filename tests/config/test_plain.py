"""Configurations as JSON and back: equal, hashable, and of the same types, whatever they hold."""

import dataclasses
import json
from typing import get_type_hints

import numpy as np
import pytest

from purify_engine import config
from purify_engine.config import (
    Assembly,
    AttackConfig,
    ClassifierConfig,
    ClassifierTraining,
    DemoConfig,
    DiffusionTraining,
    EvaluationConfig,
    GuidanceConfig,
    OfflineConfig,
    OwnDenoiserConfig,
    OwnGuideConfig,
    Perturbation,
    PurifierConfig,
    ScheduleConfig,
    TradesTraining,
    Training,
    UNetConfig,
    from_dict,
    to_dict,
)

SCHEDULE = ScheduleConfig(kind="cosine", num_timesteps=500, beta_start=1e-3, beta_end=0.3)
GUIDANCE = GuidanceConfig(
    kind="pixel", scale=3.5, form="mean", label_weight=0.5, latent_weight=2.0, pseudo_label="soft", look_at="x0",
    normalised=True, norm_eps=1e-5,
)  # fmt: skip
GROWING = GuidanceConfig(growth="noise")
PERTURBATION = Perturbation(norm="l2", epsilon=0.5, step_size=0.1, num_steps=3)
TRAINED = {
    "accumulate": 2, "compile": True, "precision": "bf16", "warmup_steps": 13, "hold": 0.2, "decay": "linear", "drop_at": 0.15,
    "ema_decay": 0.15, "other_ema_decays": (0.5,),
}  # fmt: skip
CHANGED = {  # every field of every configuration at another value than its default
    SCHEDULE,
    GUIDANCE,
    GROWING,
    PERTURBATION,
    PurifierConfig(
        t_star=71, sampler="ddim", num_steps=7, eta=0.5, guidance=GUIDANCE, schedule=SCHEDULE, cycles=2, seed=2**62 + 1,
        noise="fixed", gradient="bpda", surrogate_steps=3, clip_x0="x0_only", clamp=False, sizes="tile", tile_stride=5,
        image_range=(-1.0, 1.0), clip_input=True,
        timesteps=(70, 60, 50, 33, 20, 10, 1), landings=(60, 50, 34, 20, 10, 0, -1),
    ),
    PurifierConfig(cycles=3, cycle_t_stars=(30, 70, 50), sampler="vp_sde", time_labels="diffpure"),
    PurifierConfig(sampler="ddpm_large", last_noise=True),
    UNetConfig(
        image_size=16, in_channels=1, base_channels=32, channel_mult=(1, 3), num_res_blocks=1, attention_resolutions=(8, 4),
        num_heads=2, num_head_channels=8, time_embedding="scale_shift", resample="pool", downsample_padding="symmetric",
        resample_shortcut=True, decoder_attention="last_block", middle_attention=False, skip_rescale=True, learned_variance=True,
        sinusoid="cos_first", sinusoid_endpoint=False, time_scale=0.999, time_offset=1.0, norm_groups=4, norm_min_channels=2,
        time_channels=48, norm_eps=1e-5, dropout=0.1, prediction="v",
    ),
    ClassifierConfig(
        architecture="preact_resnet", depth=26, width=10, num_classes=3, in_channels=1, activation="silu", mean=(0.3,),
        std=(0.4,), bottleneck_factor=2, downsample_padding="asymmetric", shortcut_reads="input", shortcut_kernel=3,
        final_norm=False,
    ),
    AttackConfig(
        name="a", kind="none", norm="l2", epsilon=0.3, step_size=0.1, num_steps=3, num_eot=2, loss="dlr", start="clean",
        surface="guide", gradient="blind", seed=7, momentum=0.5, decay="cosine", margin_cap=2.0, targets=2, restarts=3,
        refine_steps=4, refine_eot=5, version="standard",
    ),
    EvaluationConfig(
        epsilon=0.1, epsilon_l2=0.2, max_shift=0.4, num_steps=3, num_eot=2, num_queries=5, num_draws=6, confidence=0.9, seed=7,
        batch_size=3, fresh_draws=7, fresh_seeds=2, suite="quick", refine_steps=4, refine_eot=5,
    ),
    DemoConfig(
        epsilon=0.1, transfer_steps=2, num_adaptive=3, adaptive_steps=4, num_eot=5, num_draws=6, num_exhibits=7, confidence=0.9,
        seed=8,
    ),
    Training(
        steps=5, batch_size=6, learning_rate=0.7, weight_decay=0.8, shift=9, flip=True, seed=10, report_every=11,
        checkpoint_every=12, **TRAINED,
    ),
    DiffusionTraining(
        steps=5, batch_size=6, learning_rate=0.7, weight_decay=0.8, shift=9, flip=False, seed=10, report_every=11,
        checkpoint_every=12, gradient_clip=14.0, t_max=16, schedule=SCHEDULE, **TRAINED,
    ),
    ClassifierTraining(
        steps=5, batch_size=6, learning_rate=0.7, weight_decay=0.8, shift=9, flip=False, seed=10, report_every=11,
        checkpoint_every=12, momentum=0.13, attack=PERTURBATION, **TRAINED,
    ),
    TradesTraining(
        steps=5, batch_size=6, learning_rate=0.7, weight_decay=0.8, shift=9, flip=False, seed=10, report_every=11,
        checkpoint_every=12, momentum=0.13, attack=PERTURBATION, trade_off=14.0, t_star=16, clean_share=0.17,
        schedule=SCHEDULE, **TRAINED,
    ),
    OfflineConfig(
        batch_size=2, part_size=3, decoders=4, retry_failed=True, max_failed=0.5, workers=6, threads=7, engine="ray",
        ray_address="auto", shard_index="auto", num_shards=8, stall_seconds=9.0,
    ),
    Assembly(
        t_star=5, num_steps=3, ratio=0.4, label_weight=0.5, latent_weight=0.7, pseudo_label="soft", calibration_images=8,
        sizes="tile",
    ),
    OwnDenoiserConfig(
        network="a", image_size=2, in_channels=4, num_halvings=5, predicts="v", takes="fraction", num_timesteps=6,
        learned_variance=True,
    ),
    OwnGuideConfig(network="a", features="b", mean=(0.3,), std=(0.4,), num_classes=5),
}  # fmt: skip
ALL = [thing for name in config.__all__ if dataclasses.is_dataclass(thing := getattr(config, name))]


def by_name(value):
    return type(value).__name__


def test_every_configuration_is_here_with_every_field_changed():
    assert {type(value) for value in CHANGED} == set(ALL)
    for cls in ALL:
        of_it = [value for value in CHANGED if type(value) is cls]  # several where one field's other value shuts out another's
        for field in dataclasses.fields(cls):
            same = all(getattr(value, field.name) == field.default for value in of_it)
            assert not same, (cls.__name__, field.name)


def test_a_saved_classifier_that_says_nothing_of_its_activation_has_relu():
    """`train trades` makes smooth guides; what a file means does not follow."""
    assert from_dict(ClassifierConfig, {"depth": 10}).activation == "relu"


def test_a_list_becomes_the_tuple_of_the_range():
    found = PurifierConfig(image_range=[0, np.float32(255)])
    assert found == PurifierConfig(image_range=(0.0, 255.0)) and hash(found)
    assert json.loads(json.dumps(to_dict(found)))["image_range"] == [0.0, 255.0]
    assert from_dict(PurifierConfig, {"t_star": 5}).image_range == (0.0, 1.0)  # a folder written without it


@pytest.mark.parametrize("given", [(1, 0), (0, 0), (0, 1, 2), (0, float("inf")), (0, float("nan")), 1, None, "01", ("0", "1")])
def test_what_is_no_range_is_refused_in_one_line(given):
    with pytest.raises(ValueError, match=r"image_range must be two numbers, the lower first, .*, got ") as caught:
        PurifierConfig(image_range=given)
    assert "\n" not in str(caught.value)


def test_lists_of_timesteps_become_tuples():
    found = PurifierConfig(t_star=9, timesteps=[8, 3], landings=[3, -1])
    assert found == PurifierConfig(t_star=9, timesteps=(8, 3), landings=(3, -1)) and hash(found)
    of_arrays = PurifierConfig(t_star=9, timesteps=np.array([8, 3]))  # whose numbers JSON would refuse
    assert json.loads(json.dumps(to_dict(of_arrays)))["timesteps"] == [8, 3]
    assert PurifierConfig(t_star=9, cycles=2, cycle_t_stars=[9, 3]).cycle_t_stars == (9, 3)


def test_a_configuration_says_how_deep_its_cycles_go_and_how_few_steps_one_takes():
    assert PurifierConfig(t_star=9, cycles=2).depths == (9, 9) and PurifierConfig(t_star=9).fewest_steps == 9
    gradual = PurifierConfig(t_star=9, cycles=3, cycle_t_stars=(4, 4, 9))
    assert gradual.depths == (4, 4, 9) and gradual.fewest_steps == 4
    assert PurifierConfig(t_star=9, num_steps=2).fewest_steps == PurifierConfig(t_star=9, timesteps=(8, 3)).fewest_steps == 2


@pytest.mark.parametrize("value", sorted(CHANGED, key=by_name), ids=by_name)
def test_a_configuration_comes_back_from_its_json_equal_and_hashable(value):
    back = from_dict(type(value), json.loads(json.dumps(to_dict(value))))
    assert type(back) is type(value) and back == value and hash(back) == hash(value)
    assert {back: 1}[value] == 1


@pytest.mark.parametrize("value", sorted(CHANGED, key=by_name), ids=by_name)
def test_the_json_form_holds_every_field_by_its_name(value):
    plain = to_dict(value)
    assert plain.keys() == {field.name for field in dataclasses.fields(value)}
    for name, kind in get_type_hints(type(value)).items():
        inner = getattr(value, name)
        assert plain[name] == (to_dict(inner) if dataclasses.is_dataclass(kind) else inner)


@pytest.mark.parametrize("cls", [cls for cls in ALL if cls is not AttackConfig], ids=lambda cls: cls.__name__)
def test_what_is_left_out_has_its_default_and_what_is_unknown_is_refused(cls):
    assert from_dict(cls, {}) == cls()
    known = ", ".join(get_type_hints(cls))
    with pytest.raises(ValueError) as wrong:
        from_dict(cls, {"zeal": 1, "hope": 2})
    assert str(wrong.value) == f"{cls.__name__} must be given only {known}, got 'hope, zeal'"


def test_an_unknown_key_is_refused_however_deep():
    with pytest.raises(ValueError, match="^GuidanceConfig must be given only kind, .*, got 'sale'$"):
        from_dict(PurifierConfig, {"guidance": {"sale": 3}})


def test_an_impossible_value_is_refused_on_the_way_back():
    with pytest.raises(ValueError, match="^t_star must be in"):
        from_dict(PurifierConfig, {"t_star": 0})


def test_configurations_cannot_be_changed():
    for value in CHANGED:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, dataclasses.fields(value)[0].name, None)


@pytest.mark.parametrize("values", [3, [], None, "digits"])
def test_what_is_no_object_of_fields_is_refused_in_one_line(values):
    with pytest.raises(ValueError, match="^UNetConfig must be given as an object of its fields, got "):
        from_dict(UNetConfig, values)


@pytest.mark.parametrize(
    ("cls", "name", "value", "wanted"),
    [
        (UNetConfig, "image_size", "8", "a whole number"),
        (UNetConfig, "image_size", 8.0, "a whole number"),
        (UNetConfig, "image_size", True, "a whole number"),
        (UNetConfig, "channel_mult", 1, "a list, each a whole number"),
        (UNetConfig, "channel_mult", [1, "2"], "a list, each a whole number"),
        (UNetConfig, "norm_eps", "1e-6", "a number"),
        (UNetConfig, "norm_eps", False, "a number"),
        (UNetConfig, "middle_attention", 1, "true or false"),
        (UNetConfig, "num_head_channels", "4", "a whole number or null"),
        (UNetConfig, "resample", ["conv"], "one of conv, pool, residual"),
        (PurifierConfig, "image_range", [0, 1, 2], "a list of 2, each a number"),
        (PurifierConfig, "schedule", None, None),
        (OwnGuideConfig, "mean", ["0.5"], "a list, each a number or null"),
        (OwnGuideConfig, "network", {}, "a text"),
    ],
    ids=str,
)
def test_a_value_of_another_type_is_refused_by_name(cls, name, value, wanted):
    with pytest.raises(ValueError) as wrong:
        from_dict(cls, {name: value})
    said = f"{cls.__name__}.{name} must be {wanted}" if wanted else "ScheduleConfig must be given as an object of its fields"
    assert str(wrong.value) == f"{said}, got {value!r}"


def test_a_whole_number_will_do_for_any_number():
    assert from_dict(GuidanceConfig, {"scale": 3}).scale == 3
