"""Every dataclass a user fills in. Free of torch, so that the command line can show its help at once.

Immutable and printable: the log line is the experiment. Each field is an argument of the API, an option of the command line, and
a key of the JSON configuration; an impossible value is refused here, with the argument, the allowed range and the value.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

SCHEMA_VERSION = 1

Sampler = Literal["ddpm", "ddpm_large", "ddim", "vp_sde"]
GuidanceForm = Literal["score", "mean"]
GuideKind = Literal["none", "adversarial", "pixel"]
PseudoLabel = Literal["pseudo", "none", "soft"]
GuidanceInput = Literal["xt", "x0"]
GradientMode = Literal["exact", "surrogate", "bpda", "blind", "straight_through", "detached_guidance"]
NoiseMode = Literal["fresh", "fixed"]
TimeInjection = Literal["additive", "scale_shift"]
Resample = Literal["conv", "pool", "residual"]
Padding = Literal["symmetric", "asymmetric"]
DecoderAttention = Literal["every_block", "last_block"]
Sinusoid = Literal["sin_first", "cos_first"]
ClassifierArchitecture = Literal["resnet", "cifar_resnet", "wide_resnet"]
Activation = Literal["relu", "silu"]

ConfigT = TypeVar("ConfigT")


def require(ok: bool, argument: str, allowed: str, value: object) -> None:
    """Refuse `value` with the one sentence every error of ours has: argument, allowed range, value."""
    if not ok:
        raise ValueError(f"{argument} must be {allowed}, got {value!r}")


def one_of(argument: str, value: object, literal: Any) -> None:
    """Refuse a value that is not among the literal's."""
    require(value in literal.__args__, argument, f"one of {', '.join(map(str, literal.__args__))}", value)


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """The noise schedule of the diffusion model (docs/math.md E1, E2)."""

    kind: Literal["linear", "cosine"] = "linear"
    num_timesteps: int = 1000
    beta_start: float = 1e-4  # linear only
    beta_end: float = 2e-2  # linear only

    def __post_init__(self) -> None:
        require(self.kind in ("linear", "cosine"), "kind", "one of linear, cosine", self.kind)
        require(self.num_timesteps >= 1, "num_timesteps", "at least 1", self.num_timesteps)
        require(0 < self.beta_start <= self.beta_end < 1, "beta_start", f"in (0, beta_end={self.beta_end}]", self.beta_start)


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """One U-Net for the three published families: DDPM, DDPM++ (score_sde VP) and ADM (guided-diffusion).

    The defaults are the CIFAR-10 network of Ho et al. 2020 (35,746,307 parameters).
    """

    image_size: int = 32  # pixels a side
    in_channels: int = 3
    base_channels: int = 128
    channel_mult: tuple[int, ...] = (1, 2, 2, 2)
    num_res_blocks: int = 2
    attention_resolutions: tuple[int, ...] = (16,)  # in pixels
    num_heads: int = 1  # ignored where num_head_channels is given
    num_head_channels: int | None = None
    time_embedding: TimeInjection = "additive"
    resample: Resample = "conv"  # up and down: strided conv, average pool / nearest, residual block
    downsample_padding: Padding = "asymmetric"  # asymmetric: (0, 1, 0, 1), as Ho et al.
    resample_shortcut: bool = False  # DDPM++: resampling residual blocks have a 1x1 shortcut even at equal width
    decoder_attention: DecoderAttention = "every_block"  # DDPM++ attends once a level, after its last block
    skip_rescale: bool = False  # DDPM++: (x + h) / sqrt(2)
    learned_variance: bool = False  # twice the output channels; the second half is dropped by the denoiser
    sinusoid: Sinusoid = "sin_first"
    sinusoid_endpoint: bool = True  # frequencies divide by half - 1 (True) or half (False)
    time_scale: float = 1.0  # network time = (t + time_offset) * time_scale, t the timestep index from 0
    time_offset: float = 0.0  # score_sde's labels are (t + 1) * 999 / 1000
    norm_groups: int = 32
    norm_eps: float = 1e-6
    dropout: float = 0.0

    def __post_init__(self) -> None:
        require(self.image_size >= 1, "image_size", "at least 1", self.image_size)
        require(self.in_channels >= 1, "in_channels", "at least 1", self.in_channels)
        base = self.base_channels
        require(base >= 4 and base % 4 == 0, "base_channels", "a positive multiple of 4", base)
        require(bool(self.channel_mult) and min(self.channel_mult) >= 1, "channel_mult", "positive integers", self.channel_mult)
        require(self.num_res_blocks >= 1, "num_res_blocks", "at least 1", self.num_res_blocks)
        one_of("time_embedding", self.time_embedding, TimeInjection)
        one_of("resample", self.resample, Resample)
        one_of("downsample_padding", self.downsample_padding, Padding)
        one_of("decoder_attention", self.decoder_attention, DecoderAttention)
        one_of("sinusoid", self.sinusoid, Sinusoid)
        factor = 2 ** (len(self.channel_mult) - 1)
        require(self.image_size % factor == 0, "image_size", f"a multiple of {factor} for this channel_mult", self.image_size)
        require(0 <= self.dropout < 1, "dropout", "in [0, 1)", self.dropout)


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """A classifier or a guide: residual networks as published for CIFAR, at any depth and width."""

    architecture: ClassifierArchitecture = "resnet"  # ResNet-18 | He et al. 6n+2, option A | Zagoruyko
    depth: int = 18  # resnet: 10, 18 or 34; cifar_resnet: 6n + 2; wide_resnet: 6n + 4
    width: int = 64  # channels of the first stage; for wide_resnet the widening factor
    num_classes: int = 10
    in_channels: int = 3
    activation: Activation = "relu"  # silu: smooth, so that second derivatives exist everywhere
    mean: tuple[float, ...] = (0.4914, 0.4822, 0.4465)  # input normalisation, inside the network
    std: tuple[float, ...] = (0.2470, 0.2435, 0.2616)

    def __post_init__(self) -> None:
        one_of("architecture", self.architecture, ClassifierArchitecture)
        one_of("activation", self.activation, Activation)
        allowed, ok = {
            "resnet": ("10, 18 or 34", self.depth in (10, 18, 34)),
            "cifar_resnet": ("6n + 2 for n of at least 1", self.depth >= 8 and self.depth % 6 == 2),
            "wide_resnet": ("6n + 4 for n of at least 1", self.depth >= 10 and self.depth % 6 == 4),
        }[self.architecture]
        require(ok, "depth", f"{allowed} for {self.architecture}", self.depth)
        require(self.width >= 1, "width", "at least 1", self.width)
        require(self.num_classes >= 2, "num_classes", "at least 2", self.num_classes)
        require(len(self.mean) == self.in_channels, "mean", f"{self.in_channels} numbers", self.mean)
        require(len(self.std) == self.in_channels, "std", f"{self.in_channels} numbers", self.std)


@dataclass(frozen=True, kw_only=True)
class GuidanceConfig:
    """What pulls the reverse process (docs/math.md E10 to E13)."""

    kind: GuideKind = "adversarial"
    scale: float = 0.0  # s; 0 runs the unguided plan and never the guide. With normalised=True this is the ratio r itself
    form: GuidanceForm = "score"
    label_weight: float = 1.0  # w_y
    latent_weight: float = 1.0  # w_d
    pseudo_label: PseudoLabel = "pseudo"
    look_at: GuidanceInput = "xt"  # where the guide looks: the noisy x_t, or the Tweedie estimate x0
    normalised: bool = False
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        one_of("kind", self.kind, GuideKind)
        one_of("form", self.form, GuidanceForm)
        one_of("pseudo_label", self.pseudo_label, PseudoLabel)
        one_of("look_at", self.look_at, GuidanceInput)
        require(self.scale >= 0, "scale", "at least 0", self.scale)
        require(self.norm_eps > 0, "norm_eps", "positive", self.norm_eps)


@dataclass(frozen=True, kw_only=True)
class PurifierConfig:
    """How to purify. Immutable and printable: the log line is the experiment."""

    t_star: int = 70  # noising steps; larger washes out more attack, and more image
    sampler: Sampler = "ddpm"
    num_steps: int | None = None  # reverse steps, evenly strided over t_star; None walks every timestep
    eta: float = 0.0  # ddim only: 0 deterministic, 1 DDPM
    guidance: GuidanceConfig = GuidanceConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    cycles: int = 1  # repeat noising and denoising
    seed: int = 0
    noise: NoiseMode = "fresh"
    gradient: GradientMode = "exact"
    surrogate_steps: int = 5  # steps of the shorter loop that gradient="surrogate" differentiates

    def __post_init__(self) -> None:
        one_of("sampler", self.sampler, Sampler)
        one_of("noise", self.noise, NoiseMode)
        one_of("gradient", self.gradient, GradientMode)
        last = self.schedule.num_timesteps
        require(1 <= self.t_star <= last, "t_star", f"in [1, {last}]", self.t_star)
        steps = self.t_star if self.num_steps is None else self.num_steps
        require(1 <= steps <= self.t_star, "num_steps", f"in [1, t_star={self.t_star}]", self.num_steps)
        require(0 <= self.eta <= 1, "eta", "in [0, 1]", self.eta)
        require(self.cycles >= 1, "cycles", "at least 1", self.cycles)
        require(self.surrogate_steps >= 1, "surrogate_steps", "at least 1", self.surrogate_steps)
        require(0 <= self.seed < 2**63, "seed", "in [0, 2**63)", self.seed)


@dataclass(frozen=True, kw_only=True)
class Perturbation:
    """A projected-gradient search inside a ball around each image; the defaults are those of TRADES on CIFAR-10."""

    norm: Literal["linf", "l2"] = "linf"
    epsilon: float = 8 / 255  # radius, in [0, 1] image units
    step_size: float = 0.007
    num_steps: int = 10

    def __post_init__(self) -> None:
        require(self.norm in ("linf", "l2"), "norm", "one of linf, l2", self.norm)
        require(self.epsilon >= 0, "epsilon", "at least 0", self.epsilon)
        require(self.step_size > 0, "step_size", "positive", self.step_size)
        require(self.num_steps >= 1, "num_steps", "at least 1", self.num_steps)


@dataclass(frozen=True, kw_only=True)
class Training:
    """What every trainer needs to know. Step k draws from (seed, k) alone, so a resumed run equals an uninterrupted one."""

    steps: int = 100_000
    batch_size: int = 128
    learning_rate: float = 1e-1
    weight_decay: float = 0.0
    shift: int = 0  # augmentation: a random shift by up to so many pixels, zeros coming in
    flip: bool = False  # augmentation: mirror half of the images
    seed: int = 0
    report_every: int = 100  # steps
    checkpoint_every: int = 1000  # steps

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "report_every", "checkpoint_every"):
            require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        require(self.learning_rate > 0, "learning_rate", "positive", self.learning_rate)
        require(self.weight_decay >= 0, "weight_decay", "at least 0", self.weight_decay)
        require(self.shift >= 0, "shift", "at least 0", self.shift)
        require(0 <= self.seed < 2**63, "seed", "in [0, 2**63)", self.seed)


@dataclass(frozen=True, kw_only=True)
class DiffusionTraining(Training):
    """How a U-Net learns to predict noise; the defaults are those of Ho et al. 2020 on CIFAR-10."""

    steps: int = 800_000
    learning_rate: float = 2e-4
    flip: bool = True
    warmup_steps: int = 5000  # linear; a half cosine down to 0 follows
    gradient_clip: float = 1.0  # largest norm of a step's gradient
    ema_decay: float = 0.9999  # the weights that are saved are an exponential moving average
    t_max: int | None = None  # trains on timesteps [0, t_max) only: a purifier never goes beyond t_star; None trains on all
    schedule: ScheduleConfig = ScheduleConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
        last = self.schedule.num_timesteps
        require(self.t_max is None or 1 <= self.t_max <= last, "t_max", f"in [1, {last}]", self.t_max)
        require(self.warmup_steps >= 0, "warmup_steps", "at least 0", self.warmup_steps)
        require(self.gradient_clip > 0, "gradient_clip", "positive", self.gradient_clip)
        require(0 <= self.ema_decay < 1, "ema_decay", "in [0, 1)", self.ema_decay)


@dataclass(frozen=True, kw_only=True)
class ClassifierTraining(Training):
    """How a plain classifier is trained: SGD with momentum, a half cosine down to 0."""

    steps: int = 78_000  # 200 epochs of CIFAR-10
    weight_decay: float = 5e-4
    shift: int = 4
    flip: bool = True
    momentum: float = 0.9
    attack: Perturbation = Perturbation(num_steps=20)  # for the model card's robust accuracy; training sees no attack

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.momentum < 1, "momentum", "in [0, 1)", self.momentum)


@dataclass(frozen=True, kw_only=True)
class TradesTraining(Training):
    """How a guide is trained against attacks (Zhang et al. 2019), optionally on images as noisy as the purifier's x_t."""

    steps: int = 30_000  # 76 epochs of CIFAR-10
    weight_decay: float = 2e-4
    shift: int = 4
    flip: bool = True
    momentum: float = 0.9
    attack: Perturbation = Perturbation()
    trade_off: float = 6.0  # lambda: weight of the robust term
    drop_at: float = 0.9  # share of the steps after which the learning rate falls to a tenth
    t_star: int = 0  # noise-aware: images are noised to timesteps [0, t_star), the same noise on both sides; 0 leaves them clean
    clean_share: float = 0.0  # noise-aware: share of the images left clean, as the guide sees the purifier's input
    schedule: ScheduleConfig = ScheduleConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
        last = self.schedule.num_timesteps
        require(0 <= self.momentum < 1, "momentum", "in [0, 1)", self.momentum)
        require(self.trade_off >= 0, "trade_off", "at least 0", self.trade_off)
        require(0 <= self.drop_at <= 1, "drop_at", "in [0, 1]", self.drop_at)
        require(0 <= self.t_star <= last, "t_star", f"in [0, {last}]", self.t_star)
        require(0 <= self.clean_share <= 1, "clean_share", "in [0, 1]", self.clean_share)


def to_dict(config: Any) -> dict[str, Any]:
    """The JSON form of any configuration here."""
    return dataclasses.asdict(config)


def from_dict(cls: type[ConfigT], values: dict[str, Any]) -> ConfigT:
    """The configuration of class `cls` from its JSON form; an unknown key is refused by name."""
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(fields))
    require(not unknown, cls.__name__, f"given only {', '.join(fields)}", ", ".join(unknown))
    nested = {"guidance": GuidanceConfig, "schedule": ScheduleConfig, "attack": Perturbation}
    built = {name: from_dict(nested[name], value) if name in nested else _frozen(value) for name, value in values.items()}
    return cls(**built)


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


AttackKind = Literal["none", "pgd", "square", "stadv"]
AttackNorm = Literal["linf", "l2", "spatial"]
AttackLoss = Literal["cross_entropy", "margin", "dlr", "joint", "features"]
AttackStart = Literal["clean", "random", "guide"]
AttackSurface = Literal["defence", "guide"]

_NORMS_OF_KIND = {"none": ("linf", "l2", "spatial"), "pgd": ("linf", "l2"), "square": ("linf",), "stadv": ("spatial",)}


@dataclass(frozen=True, kw_only=True)
class AttackConfig:
    """One attack: what it may do, and how hard it tries. `name` is its column in every table."""

    name: str
    kind: AttackKind = "pgd"  # none re-scores the clean images
    norm: AttackNorm = "linf"
    epsilon: float = 0.15  # the ball's radius in [0, 1] units; for norm="spatial" the largest shift, in pixels
    step_size: float | None = None  # None: 2.5 * epsilon / num_steps (Madry et al. 2018)
    num_steps: int = 20  # gradient steps, or queries of the Square attack
    num_eot: int = 4  # noise draws averaged a step
    loss: AttackLoss = "cross_entropy"
    start: AttackStart = "random"  # guide: start from the adversarial example of the guide alone
    surface: AttackSurface = "defence"  # guide: attack the guide alone, and hope that it transfers
    gradient: GradientMode = "exact"  # blind: attack the classifier as if nothing stood before it
    seed: int = 0

    def __post_init__(self) -> None:
        one_of("kind", self.kind, AttackKind)
        one_of("norm", self.norm, AttackNorm)
        one_of("loss", self.loss, AttackLoss)
        one_of("start", self.start, AttackStart)
        one_of("surface", self.surface, AttackSurface)
        one_of("gradient", self.gradient, GradientMode)
        norms = _NORMS_OF_KIND[self.kind]
        require(self.norm in norms, "norm", f"one of {', '.join(norms)} for kind={self.kind!r}", self.norm)
        require(self.epsilon >= 0, "epsilon", "at least 0", self.epsilon)
        require(self.step_size is None or self.step_size > 0, "step_size", "positive or None", self.step_size)
        require(1 <= self.num_steps <= 4096, "num_steps", "in [1, 4096]", self.num_steps)
        require(1 <= self.num_eot <= 256, "num_eot", "in [1, 256]", self.num_eot)
        require(0 <= self.seed < 512, "seed", "in [0, 512)", self.seed)


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How hard to evaluate. The defaults are those of the handwritten digits, 8 by 8 pixels."""

    epsilon: float = 0.15  # l_inf radius, [0, 1] units
    epsilon_l2: float = 1.0  # l_2 radius, [0, 1] units
    max_shift: float = 0.5  # spatial attack: the largest shift, in pixels
    num_steps: int = 20  # of the main attacks
    num_eot: int = 4  # of the main attacks
    num_queries: int = 100  # of the Square attack
    num_draws: int = 10  # K: fresh noise draws to pick each image's worst attack by, and K others to score it with
    confidence: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epsilon", "epsilon_l2", "max_shift"):
            require(getattr(self, name) >= 0, name, "at least 0", getattr(self, name))
        for name in ("num_steps", "num_eot", "num_queries", "num_draws"):
            require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        require(0 < self.confidence < 1, "confidence", "in (0, 1)", self.confidence)


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """How much `purify-engine demo` does: at most two minutes on two cores by default."""

    epsilon: float = 0.15  # l_inf radius, [0, 1] units
    transfer_steps: int = 40  # of the attack on the bare classifier
    num_adaptive: int = 64  # images that the adaptive attack is run on; a fixed choice
    adaptive_steps: int = 10
    num_eot: int = 2
    num_draws: int = 5  # fresh noise draws that every image is scored with
    num_exhibits: int = 12  # images of the contact sheet
    confidence: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.epsilon >= 0, "epsilon", "at least 0", self.epsilon)
        for name in ("transfer_steps", "num_adaptive", "adaptive_steps", "num_eot", "num_draws", "num_exhibits"):
            require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        require(0 < self.confidence < 1, "confidence", "in (0, 1)", self.confidence)
