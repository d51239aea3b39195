"""CIFAR-10 and CIFAR-100: purifiers for images of 32 by 32 pixels, small enough for two CPU cores, or for one GPU.

Every guide is smooth (SiLU), since the purifier's exact gradient passes through its second derivatives, and of another family or
width than the classifier, so that an attack on the one says little about the other.
"""

from __future__ import annotations

from dataclasses import replace

from purify_engine.config import (
    Assembly,
    ClassifierConfig,
    ClassifierTraining,
    DiffusionTraining,
    Perturbation,
    TradesTraining,
    UNetConfig,
)
from purify_engine.training.recipes.recipe import NamedPreset, Part, Recipe

DATA = "(A. Krizhevsky, 2009): natural photographs of 32x32 pixels, scaled to [0, 1]; the official training images."
TEN = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
HUNDRED = (
    "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle", "bowl", "boy", "bridge",
    "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle", "chair", "chimpanzee", "clock", "cloud", "cockroach",
    "couch", "crab", "crocodile", "cup", "dinosaur", "dolphin", "elephant", "flatfish", "forest", "fox", "girl", "hamster",
    "house", "kangaroo", "keyboard", "lamp", "lawn_mower", "leopard", "lion", "lizard", "lobster", "man", "maple_tree",
    "motorcycle", "mountain", "mouse", "mushroom", "oak_tree", "orange", "orchid", "otter", "palm_tree", "pear", "pickup_truck",
    "pine_tree", "plain", "plate", "poppy", "porcupine", "possum", "rabbit", "raccoon", "ray", "road", "rocket", "rose", "sea",
    "seal", "shark", "shrew", "skunk", "skyscraper", "snail", "snake", "spider", "squirrel", "streetcar", "sunflower",
    "sweet_pepper", "table", "tank", "telephone", "television", "tiger", "tractor", "train", "trout", "tulip", "turtle",
    "wardrobe", "whale", "willow_tree", "wolf", "woman", "worm",
)  # fmt: skip
MEAN_100, STD_100 = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)  # of CIFAR-100's training pixels

L2 = Perturbation(norm="l2", epsilon=0.5, step_size=0.1)
NOISY_TO, CLEAN_SHARE = 100, 0.4  # beyond the purifier's 70, and at its input, which is not noisy

# The steps of the paper's purification, and fewer. Latent guidance, calibrated to one ratio for each of them.
PRESETS = {
    "faithful": NamedPreset(t_star=70, num_steps=None, about="As the paper: all 70 steps of DDPM."),
    "balanced": NamedPreset(t_star=70, num_steps=7, about="A tenth of the paper's steps."),
    "fast": NamedPreset(t_star=70, num_steps=3, about="Three steps."),
}
# 0.8, of the digits, costs clean accuracy at every depth (docs/robustness.md, depth-ratio); a small pull is not told from none.
ASSEMBLY = Assembly(t_star=70, num_steps=7, ratio=0.1, label_weight=0.0, latent_weight=1.0, calibration_images=64, sizes="tile")

CIFAR10_SMALL = Recipe(
    name="cifar10-small",
    data=f"CIFAR-10 {DATA}",
    classes=TEN,
    parts={
        "classifier": Part(
            network=ClassifierConfig(architecture="cifar_resnet", depth=20, width=16),
            training=ClassifierTraining(
                steps=11_250,  # 30 epochs
                learning_rate=0.1,
                warmup_steps=200,
                hold=0.5,
                decay="linear",
                ema_decay=0.999,
                report_every=50,
                checkpoint_every=100,
            ),
            share=0.15,
        ),
        "guide": Part(
            network=ClassifierConfig(width=32, activation="silu"),
            training=TradesTraining(
                steps=4500,  # 12 epochs
                learning_rate=0.1,
                warmup_steps=200,
                hold=0.5,
                decay="linear",
                ema_decay=0.999,
                attack=Perturbation(num_steps=3, step_size=4 / 255),
                t_star=NOISY_TO,
                clean_share=CLEAN_SHARE,
                report_every=50,
                checkpoint_every=100,
            ),
            share=0.35,
        ),
        "unet": Part(
            network=UNetConfig(
                base_channels=48, channel_mult=(1, 2, 2, 2), num_res_blocks=1, attention_resolutions=(8,), norm_groups=8
            ),
            training=DiffusionTraining(
                steps=15_000,  # 20 epochs
                batch_size=64,
                learning_rate=8e-4,
                warmup_steps=300,
                hold=0.75,
                decay="linear",
                ema_decay=0.999,
                other_ema_decays=(0.9998,),
                t_max=200,
                report_every=100,
                checkpoint_every=200,
            ),
            share=0.5,
        ),
    },
    assembly=ASSEMBLY,
    presets=PRESETS,
)


def _for_one_gpu(name: str, data: str, classes: tuple[str, ...], mean: tuple[float, ...], std: tuple[float, ...]) -> Recipe:
    """DDPM's 35.7 million parameters, guides by TRADES, and WRN-28-10: a day on one data-centre GPU, all parts together."""
    resnet = ClassifierConfig(num_classes=len(classes), activation="silu", mean=mean, std=std)
    wide = replace(resnet, architecture="wide_resnet", depth=28, width=10)
    clean = TradesTraining(ema_decay=0.995)
    noisy = replace(clean, t_star=NOISY_TO, clean_share=CLEAN_SHARE)
    unet = DiffusionTraining(steps=400_000, hold=0.5, warmup_steps=1000, t_max=200)
    return Recipe(
        name=name,
        data=data,
        classes=classes,
        parts={
            "classifier": Part(network=replace(wide, activation="relu"), training=ClassifierTraining(), share=0.15),
            "guide": Part(network=resnet, training=noisy, share=0.2),
            "unet": Part(network=UNetConfig(), training=unet, share=0.4),
            "guide-clean": Part(network=resnet, training=clean, share=0.05),
            "guide-l2": Part(network=resnet, training=replace(noisy, attack=L2), share=0.05),
            "guide-wide": Part(network=wide, training=noisy, share=0.15),
        },
        assembly=ASSEMBLY,
        presets=PRESETS,
    )


CIFAR10 = _for_one_gpu("cifar10", f"CIFAR-10 {DATA}", TEN, ClassifierConfig().mean, ClassifierConfig().std)
CIFAR100 = _for_one_gpu("cifar100", f"CIFAR-100 {DATA}", HUNDRED, MEAN_100, STD_100)
