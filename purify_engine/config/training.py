"""How to train: the diffusion model, the plain classifier, the guide."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from purify_engine.config.checks import one_of, require
from purify_engine.config.purification import PseudoLabel, ScheduleConfig, Sizes

TrainingPrecision: TypeAlias = Literal["auto", "float32", "bf16"]
Decay: TypeAlias = Literal["cosine", "linear", "step"]


@dataclass(frozen=True, kw_only=True)
class Perturbation:
    """A projected-gradient search inside a ball around each image; the defaults are those of TRADES on CIFAR-10."""

    norm: Literal["linf", "l2"] = "linf"
    """What the radius is measured in."""
    epsilon: float = 8 / 255
    """Radius of the ball, in [0, 1] image units."""
    step_size: float = 0.007
    """Length of each step, in the same units."""
    num_steps: int = 10
    """Gradient steps."""

    def __post_init__(self) -> None:
        require(self.norm in ("linf", "l2"), "norm", "one of linf, l2", self.norm)
        require(self.epsilon >= 0, "epsilon", "at least 0", self.epsilon)
        require(self.step_size > 0, "step_size", "positive", self.step_size)
        require(self.num_steps >= 1, "num_steps", "at least 1", self.num_steps)


@dataclass(frozen=True, kw_only=True)
class Training:
    """What every trainer needs to know. Step k draws from (seed, k) alone, so a resumed run equals an uninterrupted one."""

    steps: int = 100_000
    """Batches to train on."""
    batch_size: int = 128
    """Images a step, those of all processes together."""
    accumulate: int = 1
    """Parts that a batch is split into, whose gradients are added up: less memory, the same step. Batch norms see a part only."""
    precision: TrainingPrecision = "auto"
    """Networks compute in bf16 by autocast (weights stay float32), or in float32; auto is bf16 on GPUs of compute capability 8.0
    or newer and on CPUs with instructions for it."""
    compile: bool = False
    """Compile the network by torch.compile, which takes a minute or two when the training begins."""
    learning_rate: float = 1e-1
    """At its largest: of the first steps after the warm-up."""
    warmup_steps: int = 0
    """Steps of linear warm-up."""
    hold: float = 0.0
    """Share of the steps before the learning rate falls, where it falls gradually; no less than the warm-up."""
    decay: Decay = "cosine"
    """How it falls after that: by half a cosine or in a line, down to 0; or in one step at drop_at, to a tenth."""
    drop_at: float = 0.9
    """Where decay is step: share of the steps after which the learning rate falls to a tenth."""
    weight_decay: float = 0.0
    """Of the optimiser."""
    ema_decay: float | None = None
    """Share of itself that an exponential moving average of the weights keeps in each step. The average is saved; None saves
    the last weights."""
    other_ema_decays: tuple[float, ...] = ()
    """Averages of other lengths, kept beside; the best on the held-out images is saved, ema_decay's where there are none."""
    shift: int = 0
    """Augmentation: a random shift by up to so many pixels, zeros coming in."""
    flip: bool = False
    """Augmentation: mirror half of the images."""
    seed: int = 0
    """Of initial weights, batches, augmentation and noise."""
    report_every: int = 100
    """Steps between two reports."""
    checkpoint_every: int = 1000
    """Steps between two checkpoints."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "report_every", "checkpoint_every"):
            require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        parts = f"in [1, {self.batch_size}], the images of a batch"
        require(1 <= self.accumulate <= self.batch_size, "accumulate", parts, self.accumulate)
        one_of("precision", self.precision, TrainingPrecision)
        one_of("decay", self.decay, Decay)
        require(self.warmup_steps >= 0, "warmup_steps", "at least 0", self.warmup_steps)
        require(0 <= self.hold < 1, "hold", "in [0, 1)", self.hold)
        require(self.decay != "step" or self.hold == 0, "hold", "0 where decay is step, whose drop_at says when", self.hold)
        require(0 <= self.drop_at <= 1, "drop_at", "in [0, 1]", self.drop_at)
        require(self.ema_decay is None or 0 <= self.ema_decay < 1, "ema_decay", "in [0, 1), or None", self.ema_decay)
        others = self.other_ema_decays
        require(all(0 <= decay < 1 for decay in others), "other_ema_decays", "each in [0, 1)", others)
        different = len({self.ema_decay, *others}) == 1 + len(others)
        require(different, "other_ema_decays", f"different, and none of them {self.ema_decay}, the ema_decay", others)
        require(self.learning_rate > 0, "learning_rate", "positive", self.learning_rate)
        require(self.weight_decay >= 0, "weight_decay", "at least 0", self.weight_decay)
        require(self.shift >= 0, "shift", "at least 0", self.shift)
        require(0 <= self.seed < 2**63, "seed", "in [0, 2**63)", self.seed)


@dataclass(frozen=True, kw_only=True)
class DiffusionTraining(Training):
    """How a U-Net learns to predict noise; the defaults are those of Ho et al. 2020 on CIFAR-10."""

    steps: int = 800_000
    learning_rate: float = 2e-4
    warmup_steps: int = 5000
    flip: bool = True
    gradient_clip: float = 1.0
    """Largest norm of a step's gradient."""
    ema_decay: float | None = 0.9999
    t_max: int | None = None
    """Train on timesteps [0, t_max) only, since a purifier never goes beyond t_star; None trains on all."""
    schedule: ScheduleConfig = ScheduleConfig()
    """The noise schedule."""

    def __post_init__(self) -> None:
        super().__post_init__()
        last = self.schedule.num_timesteps
        require(self.t_max is None or 1 <= self.t_max <= last, "t_max", f"in [1, {last}]", self.t_max)
        require(self.gradient_clip > 0, "gradient_clip", "positive", self.gradient_clip)


@dataclass(frozen=True, kw_only=True)
class ClassifierTraining(Training):
    """How a plain classifier is trained: SGD with momentum, a half cosine down to 0 unless told otherwise."""

    steps: int = 78_000
    """Batches to train on; 78,000 are 200 epochs of CIFAR-10."""
    weight_decay: float = 5e-4
    shift: int = 4
    flip: bool = True
    momentum: float = 0.9
    """Of the optimiser."""
    attack: Perturbation = Perturbation(num_steps=20)
    """For the model card's robust accuracy; training sees no attack."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.momentum < 1, "momentum", "in [0, 1)", self.momentum)


@dataclass(frozen=True, kw_only=True)
class TradesTraining(Training):
    """How a guide is trained against attacks (Zhang et al. 2019), optionally on images as noisy as the purifier's x_t."""

    steps: int = 30_000
    """Batches to train on; 30,000 are 76 epochs of CIFAR-10."""
    weight_decay: float = 2e-4
    shift: int = 4
    flip: bool = True
    momentum: float = 0.9
    """Of the optimiser."""
    attack: Perturbation = Perturbation()
    """The search for the perturbed images that it is trained on."""
    trade_off: float = 6.0
    """lambda: weight of the robust term."""
    decay: Decay = "step"
    t_star: int = 0
    """Noise-aware: images are noised to timesteps [0, t_star), the same noise on both sides; 0 leaves them clean."""
    clean_share: float = 0.0
    """Noise-aware: share of the images left clean, as the guide sees the purifier's input."""
    schedule: ScheduleConfig = ScheduleConfig()
    """Noise-aware: the noise schedule of the diffusion model."""

    def __post_init__(self) -> None:
        super().__post_init__()
        last = self.schedule.num_timesteps
        require(0 <= self.momentum < 1, "momentum", "in [0, 1)", self.momentum)
        require(self.trade_off >= 0, "trade_off", "at least 0", self.trade_off)
        require(0 <= self.t_star <= last, "t_star", f"in [0, {last}]", self.t_star)
        require(0 <= self.clean_share <= 1, "clean_share", "in [0, 1]", self.clean_share)


@dataclass(frozen=True, kw_only=True)
class Assembly:
    """How trained networks become a purifier: guided by the guide's features alone, at the ratio that was best on digits.

    With a pseudo-label the verdict after purification is nearly always the guide's own answer, drawn anew: no defence of its own.
    """

    t_star: int | None = None
    """Noising steps of the purifier; None: those that the guide was trained for, else 70, but no more than the U-Net was trained
    on (t_max)."""
    num_steps: int | None = None
    """Reverse steps, evenly strided over t_star; None walks every timestep."""
    ratio: float = 0.8
    """How strongly the guide pulls: its length as a share of unit noise prediction's, to which the scale is calibrated."""
    label_weight: float = 0.0
    """Of the guidance by the class that the guide sees."""
    latent_weight: float = 1.0
    """Of the guidance by the distance between the guide's features."""
    pseudo_label: PseudoLabel | None = None
    """What the label term pulls to; None: the class that the guide sees (pseudo) where label_weight is positive, else nothing."""
    calibration_images: int = 256
    """Training images that the scale is calibrated on: a fixed choice among all of them."""
    sizes: Sizes = "exact"
    """Which images the purifier takes, unless it is told: those of its network's size alone (exact), or others resized, in tiles,
    or as they are (native)."""

    def __post_init__(self) -> None:
        for name in ("t_star", "num_steps"):
            require(getattr(self, name) is None or getattr(self, name) >= 1, name, "at least 1, or None", getattr(self, name))
        for name in ("ratio", "label_weight", "latent_weight"):
            require(getattr(self, name) >= 0, name, "at least 0", getattr(self, name))
        pulls = self.label_weight + self.latent_weight > 0
        require(pulls, "label_weight", "positive where latent_weight is 0", self.label_weight)
        if self.pseudo_label is not None:
            one_of("pseudo_label", self.pseudo_label, PseudoLabel)
        aimless = self.pseudo_label == "none" and self.label_weight > 0
        require(not aimless, "pseudo_label", "pseudo or soft where label_weight is positive", self.pseudo_label)
        one_of("sizes", self.sizes, Sizes)
        require(self.calibration_images >= 1, "calibration_images", "at least 1", self.calibration_images)

    @property
    def pulls_to(self) -> PseudoLabel:
        """`pseudo_label` of the guidance."""
        return self.pseudo_label or ("pseudo" if self.label_weight > 0 else "none")
