"""What a purifier must be told of networks that are not ours, since their weights do not say it: for models/own.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from purify_engine.config.checks import one_of, require

OwnPrediction = Literal["eps", "x0", "v"]
TimeInput = Literal["index", "float", "fraction"]


@dataclass(frozen=True, kw_only=True)
class OwnDenoiserConfig:
    """A diffusion model of one's own, called as `module(x_t, t)`."""

    network: str = ""
    """Its class, for the reader of a saved configuration."""
    image_size: int = 32
    """Pixels a side of the images that it was trained on."""
    in_channels: int = 3
    """Of the images: 1 grey, 3 colour."""
    num_halvings: int = 0
    """How often it halves the pixels a side: sizes="native" takes multiples of 2 ** num_halvings."""
    predicts: OwnPrediction = "eps"
    """What it puts out: the noise, the clean image, or v (Salimans & Ho 2022)."""
    takes: TimeInput = "index"
    """What t [B] is: the timestep's index from 0 as int64 (index) or as a float (float), or (index + 1) / num_timesteps as a
    float (fraction), the continuous time in (0, 1] of score_sde."""
    num_timesteps: int = 1000
    """T, the timesteps that it was trained on; only takes="fraction" reads it."""
    learned_variance: bool = False
    """Twice the output channels: the second half says where the variance of each pixel lies, which ddpm_learned alone reads."""

    def __post_init__(self) -> None:
        for name, least in (("image_size", 1), ("in_channels", 1), ("num_halvings", 0), ("num_timesteps", 1)):
            value = getattr(self, name)
            require(isinstance(value, int) and value >= least, name, f"a whole number, at least {least}", value)
        one_of("predicts", self.predicts, OwnPrediction)
        one_of("takes", self.takes, TimeInput)

    @property
    def prediction(self) -> OwnPrediction:
        """`predicts`, by the name that networks of ours have for it."""
        return self.predicts

    @property
    def time_offset(self) -> float:
        """What is added to the index before the network is told it."""
        return 1.0 if self.takes == "fraction" else 0.0


@dataclass(frozen=True, kw_only=True)
class OwnGuideConfig:
    """A classifier of one's own, called as `module(images)`."""

    network: str = ""
    """Its class, for the reader of a saved configuration."""
    features: str | None = None
    """The layer whose output the penultimate features are, by its name in the module; None: what the last
    nn.Linear that runs reads."""
    mean: tuple[float, ...] | None = None
    """Subtracted from each channel before the module sees an image in [0, 1]; None: nothing."""
    std: tuple[float, ...] | None = None
    """What each channel is then divided by; None: nothing."""
    num_classes: int | None = None
    """Logits that it puts out; None: as many as it does."""

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            object.__setattr__(self, name, _numbers(name, getattr(self, name)))
        require((self.mean is None) == (self.std is None), "std", "given where mean is, and only there", self.std)
        alike = self.mean is None or self.std is None or len(self.mean) == len(self.std)
        require(alike, "std", f"of as many channels as mean {self.mean}", self.std)
        require(self.std is None or min(self.std) > 0, "std", "positive in every channel", self.std)
        require(self.num_classes is None or self.num_classes >= 2, "num_classes", "at least 2, or None", self.num_classes)


def _numbers(argument: str, given: Any) -> tuple[float, ...] | None:
    """A number for each channel, from a tuple, a list, an array or a tensor."""
    if given is None:
        return None
    try:
        return tuple(float(number) for number in given)
    except (TypeError, ValueError):
        raise ValueError(f"{argument} must be numbers, one a channel, as (0.5,), or None, got {given!r}") from None
