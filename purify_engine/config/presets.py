"""Purifications as papers report them, by name: each row cites where its numbers stand, and says where it departs from them.

A preset is a configuration and the name of the network that it was published with; `PurifierConfig` says what its fields mean.

    GuidedPurifier(denoiser, guide, PRESETS["diffpure-cifar10-linf"].config)
"""

from __future__ import annotations

from dataclasses import dataclass

from purify_engine.config.purification import GuidanceConfig, PurifierConfig
from purify_engine.config.timesteps import respaced_timesteps


@dataclass(frozen=True, kw_only=True)
class Preset:
    """One published purification."""

    name: str
    """By which it is asked for."""
    config: PurifierConfig
    """How to purify."""
    unet: str | None
    """The network it is published for, a name in models/published.py; None where the paper's own was never published."""
    image_size: int
    """Pixels a side of the images that this network reads; `config.sizes` says what becomes of others."""
    source: str
    """The paper, and where in it or in its code the numbers stand."""
    differs: str = ""
    """What is done otherwise than there; empty where nothing is known to be."""
    calibrate_to: float | None = None
    """Where the paper gives no guidance scale: the ratio for `purifier.calibrate(training_images, ratio)`, whose result is to be
    `guidance.scale`. Until that is set nothing guides: `config` has a scale of 0."""


DIFFPURE = "Nie et al. 2022, Diffusion models for adversarial purification (arXiv 2205.07460), "
GDMP = "Wang et al. 2022, Guided diffusion model for adversarial purification (arXiv 2205.14969), "
GRADUAL = "Lee & Kim 2023, Robust evaluation of diffusion-based adversarial purification (ICCV; arXiv 2303.09051), "
AGDM = "Lin et al. 2024, Adversarial guided diffusion models for adversarial purification (arXiv 2403.16067), "

NOTHING = GuidanceConfig(kind="none")
LATENT = GuidanceConfig(kind="adversarial", latent_weight=1.0, label_weight=0.0, pseudo_label="none")


def gdmp_guidance(guide_scale: float, perturbation: float, batch_size: int, dimensions: int) -> GuidanceConfig:
    """GDMP's pixel guidance for ours, which sums over the dimensions of an image where theirs averages over a whole batch.

    Theirs adds variance * S * gradient of -mean (x_t - x'_t)^2 to the mean of a step, with S = sigma / (m sqrt(alpha_bar)) and
    m = 2 perturbation / 255 / 3 / guide_scale. The mean divides by batch_size * dimensions, so our scale, which is multiplied by
    sigma / sqrt(alpha_bar) for growth="noise", is 1 / (m * batch_size * dimensions). perturbation: in levels of 255.
    """
    mean_scale = 255 * 3 * guide_scale / (2 * perturbation)
    return GuidanceConfig(kind="pixel", form="mean", growth="noise", scale=mean_scale / (batch_size * dimensions))


def _diffpure_cifar10(threat: str, t_star: int, where: str) -> Preset:
    return Preset(
        name=f"diffpure-cifar10-{threat}",
        config=PurifierConfig(t_star=t_star, sampler="vp_sde", guidance=NOTHING, clamp=False),
        unet="DDPMPP_DEEP_CIFAR10",
        image_size=32,
        source=f"{DIFFPURE}{where}",
    )


def _gradual(dataset: str, last: int, unet: str, image_size: int, differs: str = "") -> Preset:
    stars = (30, 30, 30, 30, 50, 50, last, last)
    return Preset(
        name=f"gradual-{dataset}",
        config=PurifierConfig(
            t_star=last,
            cycles=len(stars),
            cycle_t_stars=stars,
            sampler="ddpm",
            guidance=NOTHING,
            clamp=False,
            sizes="exact" if dataset == "cifar10" else "resize",
        ),
        unet=unet,
        image_size=image_size,
        source=f"{GRADUAL}def_max_timesteps of its scripts",
        differs=f"The paper votes over 10 purifications of an image; this is one of them.{differs}",
    )


_RESPACED = respaced_timesteps("250")[-45:]  # GDMP's 45 purification steps are the end of 250

_ROWS = (
    _diffpure_cifar10("linf", 100, "t* = 0.1; run_scripts/cifar10/run_cifar_rand_inf.sh"),
    _diffpure_cifar10("l2", 75, "t* = 0.075; run_scripts/cifar10/run_cifar_rand_L2.sh"),
    _diffpure_cifar10("stadv", 125, "t* = 0.125; run_scripts/cifar10/run_cifar_stadv_rn50.sh"),
    Preset(
        name="diffpure-imagenet",
        config=PurifierConfig(
            t_star=150, sampler="vp_sde", time_labels="diffpure", guidance=NOTHING, clamp=False, sizes="resize"
        ),
        unet="ADM_IMAGENET256",
        image_size=256,
        source=f"{DIFFPURE}t* = 0.15; run_scripts/imagenet/run_in_rand_inf.sh",
        differs="Its code keeps the network's weights in 16 bits; that is the precision here, not the preset.",
    ),
    Preset(
        name="diffpure-celebahq",
        config=PurifierConfig(t_star=500, sampler="ddpm", guidance=NOTHING, clamp=False),
        unet="DDPM_CELEBAHQ256",
        image_size=256,
        source=f"{DIFFPURE}run_scripts/celebahq/run_celebahq_bpda_smiling.sh and configs/celeba.yml (fixedsmall)",
    ),
    Preset(
        name="gdmp-cifar10",
        config=PurifierConfig(
            t_star=36, cycles=4, sampler="ddpm_large", clip_x0="consistent", guidance=gdmp_guidance(60_000, 8, 100, 3 * 32 * 32)
        ),
        unet="DDPM_CIFAR10",
        image_size=32,
        source=f"{GDMP}configs/cifar10_MSE.yml, at its batch of 100",
        differs="Every cycle pulls to its own input, where GDMP's pull to that of the first; GDMP noises one timestep further "
        "than it walks back, its last step's pull is 0.55 of this, and it votes over 10 purifications.",
    ),
    Preset(
        name="gdmp-imagenet",
        config=PurifierConfig(
            t_star=_RESPACED[0] + 1, timesteps=_RESPACED, sampler="ddpm_learned", clip_x0="consistent", sizes="resize",
            guidance=gdmp_guidance(1000, 4, 60, 3 * 256 * 256),
        ),
        unet="ADM_IMAGENET256",
        image_size=256,
        source=f"{GDMP}configs/ImageNet_Res50.yml (MSE), at its batch of 60",
        differs="It pulls to the noised input, where GDMP's ImageNet code pulls to the input as it is; its guidance by "
        "structural similarity (SSIM, configs/ImageNet_BPDA.yml) is not here, and the pixels' takes its place; GDMP cuts to "
        "[0, 1] before it resizes back, and votes over 5 purifications.",
    ),
    _gradual(
        "cifar10", 125, "DDPMPP_DEEP_CIFAR10", 32,
        " Its code tells the network i, where score_sde's own and this tell 0.999 (i + 1); a network of time_offset=0 and "
        "time_scale=1 is told the same.",
    ),
    _gradual("imagenet", 200, "ADM_IMAGENET256", 256),
    Preset(
        name="agdm-cifar10",
        config=PurifierConfig(t_star=70, sampler="ddpm", guidance=LATENT),
        unet="DDPMPP_DEEP_CIFAR10",
        image_size=32,
        source=f"{AGDM}CIFAR-10, t* = 70 in 70 steps",
        differs="The authors published no code: sampler, network and distance are choices of ours; the scale is to be "
        "calibrated.",
        calibrate_to=0.8,
    ),
    Preset(
        name="agdm-cifar100",
        config=PurifierConfig(t_star=70, sampler="ddpm", guidance=LATENT),
        unet=None,
        image_size=32,
        source=f"{AGDM}CIFAR-100",
        differs="The authors published neither code nor network: t* (that of CIFAR-10), sampler and distance are choices of "
        "ours; the scale is to be calibrated.",
        calibrate_to=0.8,
    ),
    Preset(
        name="agdm-imagenet",
        config=PurifierConfig(t_star=150, sampler="ddpm", guidance=LATENT, sizes="resize"),
        unet="ADM_IMAGENET256",
        image_size=256,
        source=f"{AGDM}ImageNet",
        differs="The authors published no code: t* (DiffPure's), sampler, network and distance are choices of ours; the scale "
        "is to be calibrated.",
        calibrate_to=0.8,
    ),
)  # fmt: skip

PRESETS: dict[str, Preset] = {preset.name: preset for preset in _ROWS}
