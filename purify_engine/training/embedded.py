"""The purifier that the package carries, its networks, and how to make them again: `purify-engine train digits`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from purify_engine.config import (
    Assembly,
    ClassifierConfig,
    ClassifierTraining,
    DiffusionTraining,
    GuidanceConfig,
    Perturbation,
    PurifierConfig,
    TradesTraining,
    UNetConfig,
    to_dict,
)
from purify_engine.folders import add_to_config
from purify_engine.models import Classifier, Denoiser, UNet, load_safetensors
from purify_engine.purifier import GuidedPurifier
from purify_engine.training.classifier import LabelledImages, train_classifier
from purify_engine.training.diffusion import train_diffusion
from purify_engine.training.progress import Progress, silent
from purify_engine.training.record import remembered
from purify_engine.training.trades import train_trades
from purify_engine.types import Images, Labels

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
PURIFIER = PurifierConfig(t_star=150, num_steps=5, guidance=GuidanceConfig(scale=1.0, latent_weight=0.0))
RATIO, CALIBRATION_IMAGES = 0.2, 256  # the scale s is calibrated to this r, on the first so many training digits
ASSEMBLY = Assembly(
    t_star=150, num_steps=5, ratio=RATIO, label_weight=1.0, latent_weight=0.0, calibration_images=CALIBRATION_IMAGES
)


def train_embedded(
    images: Images,
    labels: Labels,
    out_dir: Path,
    *,
    held_out: LabelledImages | None = None,
    seconds: float | None = None,
    resume: bool = False,
    progress: Progress = silent,
) -> None:
    """Make the purifier of the digits (float [N, 1, 8, 8] in [0, 1], int64 [N]) in `out_dir`, for `from_pretrained`.

    Trains classifier, guide and U-Net, writes a card beside each, and calibrates the guidance. With `resume=True` a finished
    network is kept and an interrupted one goes on. `held_out` digits are only measured. Each network takes a third of `seconds`
    at most.
    """

    def missing(name: str) -> bool:
        return not (resume and (out_dir / f"{name}.safetensors").exists())

    options: dict[str, Any] = {"data": DATA, "seconds": seconds and seconds / 3, "resume": resume, "progress": progress}
    classified = {**options, "held_out": held_out, "class_names": CLASSES}
    if missing("classifier"):
        train_classifier(images, labels, CLASSIFIER, CLASSIFIER_TRAINING, out_dir, **classified)
    if missing("guide"):
        train_trades(images, labels, GUIDE, GUIDE_TRAINING, out_dir, **classified)
    if missing("unet"):
        train_diffusion(images, UNET, UNET_TRAINING, out_dir, held_out=held_out[0] if held_out else None, **options)
    purifier = replace(PURIFIER, guidance=replace(PURIFIER.guidance, scale=calibrated_scale(images, out_dir)))
    known = remembered(images[:CALIBRATION_IMAGES], None, DATA)
    record = {"data": to_dict(known), **to_dict(ASSEMBLY)}
    add_to_config(out_dir, unet=UNET, guide=GUIDE, classifier=CLASSIFIER, purifier=purifier, training={"purifier": record})


def calibrated_scale(images: Images, folder: Path) -> float:
    """The guidance scale at which the networks in `folder` pull by `RATIO`, to four digits."""
    unet = load_safetensors(UNet(UNET), folder / "unet.safetensors")
    guide = load_safetensors(Classifier(GUIDE), folder / "guide.safetensors")
    purifier = GuidedPurifier(Denoiser(unet), guide, PURIFIER)
    return float(f"{purifier.calibrate(images[:CALIBRATION_IMAGES], RATIO):.4g}")
