"""The purifier of handwritten digits that the package carries: `purify-engine train digits`."""

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
from purify_engine.training.recipes.recipe import Part, Recipe

DATA = (
    "The handwritten digits bundled with scikit-learn (UCI ML, E. Alpaydin and C. Kaynak, 1998): 1797 real scans of 8x8 pixels, "
    "scaled to [0, 1]; 1437 to train on and 360 held out, stratified by class, a fixed split (`purify_engine.data.digits`)."
)
CLASSES = tuple("0123456789")
MEAN, STD = (0.305,), (0.376,)  # of the training pixels
ATTACK = Perturbation(epsilon=0.15, step_size=0.02, num_steps=20)  # 0.15: two to three of the sixteen grey levels

UNET = UNetConfig(
    image_size=8,
    in_channels=1,
    base_channels=24,
    channel_mult=(1, 2),
    num_res_blocks=1,
    attention_resolutions=(4,),
    norm_groups=8,
)
UNET_TRAINING = DiffusionTraining(
    steps=1200,  # 107 epochs; beyond them, digits kept apart from the training set were denoised worse
    batch_size=128,
    precision="float32",  # the same on every processor, and quicker at this size
    learning_rate=2e-3,
    warmup_steps=100,
    ema_decay=0.995,
    flip=False,  # a mirrored digit is no digit
    t_max=200,  # the purifier diffuses to t_star = 150
    report_every=50,
    checkpoint_every=200,
)

# Depth 10 has one block a stage. SiLU: the purifier's exact gradient goes through the guide's second derivatives.
GUIDE = ClassifierConfig(architecture="wide_resnet", depth=10, width=2, in_channels=1, activation="silu", mean=MEAN, std=STD)
GUIDE_TRAINING = TradesTraining(
    steps=500,
    batch_size=128,
    precision="float32",  # the same on every processor, and quicker at this size
    learning_rate=0.1,
    drop_at=0.8,
    shift=0,
    flip=False,
    attack=replace(ATTACK, step_size=0.06, num_steps=5),  # half the time of ten steps, and 20 steps find little more
    t_star=150,  # it is shown the purifier's x_t, which is that noisy
    clean_share=0.25,  # and at the purifier's input, which is not
    report_every=20,
    checkpoint_every=200,
)

# Another family than the guide's, so that an attack on the one says little about the other.
CLASSIFIER = ClassifierConfig(architecture="cifar_resnet", depth=8, width=8, in_channels=1, mean=MEAN, std=STD)
CLASSIFIER_TRAINING = ClassifierTraining(
    steps=600,
    batch_size=128,
    precision="float32",  # the same on every processor, and quicker at this size
    learning_rate=0.1,
    shift=0,
    flip=False,
    attack=ATTACK,
    report_every=20,
    checkpoint_every=200,
)

# Guided by the pseudo-label alone: on training digits, under each image's worst of a few attacks, it kept more than the latent
# term and as much as both, at either strength tried (bench/tuning/guidance.py, bench/results/digits-guidance.jsonl).
ASSEMBLY = Assembly(t_star=150, num_steps=5, ratio=0.2, label_weight=1.0, latent_weight=0.0, calibration_images=256)

DIGITS = Recipe(
    name="digits",
    data=DATA,
    classes=CLASSES,
    parts={
        "classifier": Part(network=CLASSIFIER, training=CLASSIFIER_TRAINING),
        "guide": Part(network=GUIDE, training=GUIDE_TRAINING),
        "unet": Part(network=UNET, training=UNET_TRAINING),
    },
    assembly=ASSEMBLY,
    validation=0,
)
