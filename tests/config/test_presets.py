"""Every preset is a possible purification of its network, cites where its numbers stand, and has the numbers published there."""

import dataclasses

import pytest

from purify_engine.config import PRESETS, PurifierConfig
from purify_engine.config.presets import gdmp_guidance
from purify_engine.engine.plan import make_plan
from purify_engine.models import published

ROWS = list(PRESETS.values())


@pytest.mark.parametrize("preset", ROWS, ids=lambda preset: preset.name)
def test_every_preset_makes_a_plan_for_each_cycle(preset):
    config = preset.config
    plans = [make_plan(config, cycle=cycle) for cycle in range(config.cycles)]
    told = [t_star - 1 for t_star in config.depths]  # and by DiffPure's labels the same at t* = 150, where its sums fall short
    assert [int(plan.times[0]) for plan in plans] == told
    for plan, t_star in zip(plans, config.depths, strict=True):
        assert len(plan) == (t_star if config.timesteps is None else len(config.timesteps))
        assert plan.rows.isfinite().all() and plan.guided == (config.guidance.scale > 0)
    assert len(make_plan(config, config.surrogate_steps)) == config.surrogate_steps


@pytest.mark.parametrize("preset", ROWS, ids=lambda preset: preset.name)
def test_every_preset_names_its_network_and_its_source(preset):
    assert PRESETS[preset.name] is preset and "arXiv" in preset.source
    if preset.unet is not None:
        unet = getattr(published, preset.unet)
        assert unet.image_size == preset.image_size
        assert unet.learned_variance or preset.config.sampler != "ddpm_learned"
        assert unet.time_offset == 0 or preset.config.time_labels == "index"  # DiffPure's labels are for guided-diffusion's
    calibrated = preset.config.guidance.kind == "adversarial"
    assert (preset.calibrate_to is not None) == calibrated == (calibrated and preset.config.guidance.scale == 0)
    assert preset.differs == "" or preset.differs.endswith(".")


def test_the_rows_are_those_that_papers_report():
    assert {name: preset.config.depths for name, preset in PRESETS.items()} == {
        "diffpure-cifar10-linf": (100,),
        "diffpure-cifar10-l2": (75,),
        "diffpure-cifar10-stadv": (125,),
        "diffpure-imagenet": (150,),
        "diffpure-celebahq": (500,),
        "gdmp-cifar10": (36, 36, 36, 36),
        "gdmp-imagenet": (178,),  # 45 of 250 timesteps: 177, 173, … 0
        "gradual-cifar10": (30, 30, 30, 30, 50, 50, 125, 125),
        "gradual-imagenet": (30, 30, 30, 30, 50, 50, 200, 200),
        "agdm-cifar10": (70,),
        "agdm-cifar100": (70,),
        "agdm-imagenet": (150,),
    }
    assert len(PRESETS["gdmp-imagenet"].config.timesteps) == 45


def test_diffpure_is_its_sde_unguided_and_unclamped():
    for threat in ("linf", "l2", "stadv"):
        config = PRESETS[f"diffpure-cifar10-{threat}"].config
        expected = PurifierConfig(t_star=config.t_star, sampler="vp_sde", clamp=False, guidance=config.guidance)
        assert config == expected and config.guidance.kind == "none"
    imagenet = PRESETS["diffpure-imagenet"].config
    assert (imagenet.sampler, imagenet.time_labels, imagenet.sizes, imagenet.clamp) == ("vp_sde", "diffpure", "resize", False)


@pytest.mark.parametrize(
    ("name", "guide_scale", "perturbation", "batch", "shape"),
    [("gdmp-cifar10", 60_000, 8, 100, (3, 32, 32)), ("gdmp-imagenet", 1000, 4, 60, (3, 256, 256))],
)
def test_gdmps_pull_is_the_published_one_of_a_batch(name, guide_scale, perturbation, batch, shape):
    """variance * sigma / (m sqrt(alpha_bar)) / (B n) times -2 (x - x') there, our row's d times the same here."""
    config = PRESETS[name].config
    plan = make_plan(config)
    signal, sigma = plan.marginals.unbind(dim=1)
    m = perturbation * 2 / 255.0 / 3.0 / guide_scale
    published_pull = sigma / (m * signal) / (batch * shape[0] * shape[1] * shape[2])
    variance = plan.rows[:, 3].square()  # ddpm_large: of the step; ddpm_learned: 1 of each pixel's own; none on the last step
    assert (plan.rows[:-1, 2] / (variance * published_pull)[:-1] - 1).abs().max() < 1e-12
    assert config.guidance == gdmp_guidance(guide_scale, perturbation, batch, shape[0] * shape[1] * shape[2])


def test_a_preset_is_a_constant():
    with pytest.raises(dataclasses.FrozenInstanceError):
        PRESETS["agdm-cifar10"].name = "other"
