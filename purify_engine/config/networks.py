"""What the networks look like: the U-Net, and the classifiers and guides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from purify_engine.config.checks import one_of, require

TimeInjection = Literal["additive", "scale_shift"]
Resample = Literal["conv", "pool", "residual"]
Padding = Literal["symmetric", "asymmetric"]
DecoderAttention = Literal["every_block", "last_block"]
Sinusoid = Literal["sin_first", "cos_first"]
Prediction = Literal["eps", "x0", "v", "edm"]
ClassifierArchitecture = Literal["resnet", "cifar_resnet", "wide_resnet", "preact_resnet", "imagenet_resnet"]
Activation = Literal["relu", "silu"]
NormalisationName = Literal["none", "half", "cifar10", "cifar100", "imagenet"]  # of models/checkpoints/normalisation.py
ShortcutInput = Literal["activated", "input"]
BASIC_DEPTHS = (10, 18, 34)
BOTTLENECK_DEPTHS = (14, 26, 50, 101, 152)


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """One U-Net for the three published families: DDPM, DDPM++ (score_sde VP) and ADM (guided-diffusion).

    The defaults are the CIFAR-10 network of Ho et al. 2020 (35,746,307 parameters).
    """

    image_size: int = 32
    """Pixels a side."""
    in_channels: int = 3
    """Of the images: 1 grey, 3 colour."""
    base_channels: int = 128
    """Channels at full resolution are this times the first of channel_mult."""
    channel_mult: tuple[int, ...] = (1, 2, 2, 2)
    """Channels of each resolution, in units of base_channels; every further one halves the pixels a side."""
    num_res_blocks: int = 2
    """Residual blocks of each resolution on the way down; one more on the way up."""
    attention_resolutions: tuple[int, ...] = (16,)
    """Where to attend, in pixels a side."""
    num_heads: int = 1
    """Of attention; ignored where num_head_channels is given."""
    num_head_channels: int | None = None
    """Channels of one head; None: as num_heads says."""
    time_embedding: TimeInjection = "additive"
    """How a block is told the time: added after its first convolution, or as scale and shift of its second norm."""
    time_channels: int | None = None
    """Sines and cosines that tell the time; None: base_channels. guided-diffusion's 512x512 has twice as many."""
    resample: Resample = "conv"
    """Up and down: strided convolution, average pool and nearest pixel, or a residual block."""
    downsample_padding: Padding = "asymmetric"
    """Of strided convolutions; asymmetric: (0, 1, 0, 1), as Ho et al."""
    resample_shortcut: bool = False
    """DDPM++: resampling residual blocks have a 1x1 shortcut even at equal width."""
    decoder_attention: DecoderAttention = "every_block"
    """Attend after every block on the way up; DDPM++ attends once a level, after its last block."""
    middle_attention: bool = True
    """Attend between the two blocks at the bottom, whatever its resolution."""
    skip_rescale: bool = False
    """DDPM++: (x + h) / sqrt(2) where residual blocks add."""
    learned_variance: bool = False
    """Twice the output channels: the second half says where the variance of each pixel lies, which ddpm_learned alone reads."""
    prediction: Prediction = "eps"
    """What the network puts out, which the denoiser turns into eps: the noise, the clean image, v (Salimans & Ho 2022), or EDM's
    preconditioned mixture (Karras et al. 2022), where the network is told ln(sigma) / 4 in place of t."""
    sinusoid: Sinusoid = "sin_first"
    """Which half of the sinusoidal embedding of the time comes first."""
    sinusoid_endpoint: bool = True
    """Frequencies divide by half - 1 (True) or half (False)."""
    time_scale: float = 1.0
    """Network time = (t + time_offset) * time_scale, t the timestep index from 0."""
    time_offset: float = 0.0
    """score_sde's labels are (t + 1) * 999 / 1000, so it has 1 here."""
    norm_groups: int = 32
    """Groups of each GroupNorm."""
    norm_min_channels: int | None = 4
    """Channels of a group at least, a norm of few having fewer groups, as in score_sde and EDM; None: always norm_groups."""
    norm_eps: float = 1e-6
    """Added to the variance in each GroupNorm."""
    dropout: float = 0.0
    """Share of values dropped in training."""

    def __post_init__(self) -> None:
        require(self.image_size >= 1, "image_size", "at least 1", self.image_size)
        require(self.in_channels >= 1, "in_channels", "at least 1", self.in_channels)
        base = self.base_channels
        require(base >= 4 and base % 4 == 0, "base_channels", "a positive multiple of 4", base)
        waves = self.time_channels
        require(waves is None or (waves >= 4 and waves % 2 == 0), "time_channels", "an even number of at least 4, or None", waves)
        require(
            bool(self.channel_mult) and min(self.channel_mult) >= 1,
            "channel_mult",
            "positive integers",
            self.channel_mult,
        )
        require(self.num_res_blocks >= 1, "num_res_blocks", "at least 1", self.num_res_blocks)
        one_of("time_embedding", self.time_embedding, TimeInjection)
        one_of("resample", self.resample, Resample)
        one_of("downsample_padding", self.downsample_padding, Padding)
        one_of("decoder_attention", self.decoder_attention, DecoderAttention)
        one_of("sinusoid", self.sinusoid, Sinusoid)
        one_of("prediction", self.prediction, Prediction)
        require(self.norm_groups >= 1, "norm_groups", "at least 1", self.norm_groups)
        least = self.norm_min_channels
        require(least is None or least >= 1, "norm_min_channels", "at least 1, or None", least)
        factor = 2 ** (len(self.channel_mult) - 1)
        require(
            self.image_size % factor == 0,
            "image_size",
            f"a multiple of {factor} for this channel_mult",
            self.image_size,
        )
        require(0 <= self.dropout < 1, "dropout", "in [0, 1)", self.dropout)

    @property
    def num_halvings(self) -> int:
        """How often the network halves the pixels a side: it takes multiples of 2 ** num_halvings."""
        return len(self.channel_mult) - 1


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """A classifier or a guide: residual networks as published for CIFAR and ImageNet, at any depth and width."""

    architecture: ClassifierArchitecture = "resnet"
    """ResNet-18 and its kin for small images, He et al.'s 6n + 2 layers with option A (cifar_resnet), Zagoruyko's wide ones,
    pre-activation ResNets, or torchvision's ResNets (imagenet_resnet)."""
    depth: int = 18
    """Layers. cifar_resnet: 6n + 2; wide_resnet: 6n + 4; others: 10, 18, 34, or by bottlenecks 14, 26, 50, 101, 152."""
    width: int = 64
    """Channels of the first stage; for wide_resnet the widening factor."""
    num_classes: int = 10
    """Classes to tell apart."""
    in_channels: int = 3
    """Of the images: 1 grey, 3 colour."""
    activation: Activation = "relu"
    """silu is smooth, so that second derivatives exist everywhere."""
    mean: tuple[float, ...] = (0.4914, 0.4822, 0.4465)
    """Input normalisation, inside the network: subtracted from each channel."""
    std: tuple[float, ...] = (0.2470, 0.2435, 0.2616)
    """Input normalisation, inside the network: what each channel is then divided by."""
    bottleneck_factor: int = 1
    """How many times wider the inside of a bottleneck is: 2 in torchvision's wide_resnet50_2."""
    downsample_padding: Padding = "symmetric"
    """Of strided 3x3 convolutions; asymmetric: (0, 1, 0, 1), as DeepMind's wide_resnet and preact_resnet."""
    shortcut_reads: ShortcutInput = "activated"
    """preact_resnet: whether the convolution of a shortcut reads the first activation of its block, or the block's input."""
    shortcut_kernel: int = 1
    """preact_resnet: pixels a side of that convolution, 1 or, as DeepMind's, 3."""
    final_norm: bool = True
    """preact_resnet: whether a batch norm and an activation stand before the global mean."""

    def __post_init__(self) -> None:
        one_of("architecture", self.architecture, ClassifierArchitecture)
        one_of("activation", self.activation, Activation)
        one_of("downsample_padding", self.downsample_padding, Padding)
        one_of("shortcut_reads", self.shortcut_reads, ShortcutInput)
        allowed, ok = {
            "cifar_resnet": ("6n + 2 for n of at least 1", self.depth >= 8 and self.depth % 6 == 2),
            "wide_resnet": ("6n + 4 for n of at least 1", self.depth >= 10 and self.depth % 6 == 4),
        }.get(self.architecture, ("10, 14, 18, 26, 34, 50, 101 or 152", self.depth in BASIC_DEPTHS + BOTTLENECK_DEPTHS))
        require(ok, "depth", f"{allowed} for {self.architecture}", self.depth)
        require(self.width >= 1, "width", "at least 1", self.width)
        require(self.num_classes >= 2, "num_classes", "at least 2", self.num_classes)
        require(len(self.mean) == self.in_channels, "mean", f"{self.in_channels} numbers", self.mean)
        require(len(self.std) == self.in_channels, "std", f"{self.in_channels} numbers", self.std)
        self._check_variants()

    def _check_variants(self) -> None:
        """What only some architectures have: elsewhere it would change nothing, in silence."""
        kind, preact = self.architecture, self.architecture == "preact_resnet"
        factors = "at least 1" if self.has_bottlenecks else f"1 for {kind} of depth {self.depth}"
        fits = self.bottleneck_factor == 1 or self.has_bottlenecks and self.bottleneck_factor > 1
        require(fits, "bottleneck_factor", factors, self.bottleneck_factor)
        pads = preact or kind == "wide_resnet" or self.downsample_padding == "symmetric"
        require(pads, "downsample_padding", f"symmetric for {kind}", self.downsample_padding)
        require(preact or self.shortcut_reads == "activated", "shortcut_reads", f"activated for {kind}", self.shortcut_reads)
        kernels = (1, 3) if preact else (1,)
        allowed = f"{' or '.join(map(str, kernels))} for {kind}"
        require(self.shortcut_kernel in kernels, "shortcut_kernel", allowed, self.shortcut_kernel)
        require(preact or self.final_norm, "final_norm", f"True for {kind}", self.final_norm)

    @property
    def has_bottlenecks(self) -> bool:
        """Whether blocks are of three convolutions, the first and the last 1x1."""
        return self.depth in BOTTLENECK_DEPTHS and self.architecture in ("resnet", "preact_resnet", "imagenet_resnet")
