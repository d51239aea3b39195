"""How to purify: the noise schedule, the guidance, the walk."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import isfinite
from operator import index
from typing import Literal, SupportsFloat, SupportsIndex

from purify_engine.config.checks import one_of, require
from purify_engine.config.timesteps import check_timesteps

Sampler = Literal["ddpm", "ddpm_large", "ddpm_learned", "ddim", "vp_sde"]
ClipX0 = Literal["never", "consistent", "x0_only"]
ScheduleKind = Literal["linear", "cosine", "scaled_linear", "sigmoid"]
GuidanceForm = Literal["score", "mean"]
GuideKind = Literal["none", "adversarial", "pixel"]
PseudoLabel = Literal["pseudo", "none", "soft"]
GuidanceInput = Literal["xt", "x0"]
GradientMode = Literal["exact", "surrogate", "bpda", "blind", "straight_through", "detached_guidance"]
NoiseMode = Literal["fresh", "fixed", "torch"]
Growth = Literal["constant", "noise"]
Sizes = Literal["exact", "native", "resize", "tile"]
TimeLabels = Literal["index", "diffpure"]

SEEDS = "in [0, 2**63), an integer, or None"
RANGE_ROUNDING = 1e-4  # how far outside its range a float image may lie before it is not an image, as a share of the range
UNIT_RANGE = (0.0, 1.0)  # of the images that files hold, attacks project to and classifiers read


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """The noise schedule of the diffusion model (docs/math.md E1, E2, E28)."""

    kind: ScheduleKind = "linear"
    """How beta grows: linear (Ho et al. 2020), so that alpha_bar falls as a squared cosine (Nichol & Dhariwal 2021), or as in
    diffusers: its root linearly (scaled_linear), or along a sigmoid."""
    num_timesteps: int = 1000
    """T, the timesteps that the diffusion model was trained on."""
    beta_start: float = 1e-4
    """The first beta; not for a cosine."""
    beta_end: float = 2e-2
    """The last beta; not for a cosine. A sigmoid only comes close to both."""

    def __post_init__(self) -> None:
        one_of("kind", self.kind, ScheduleKind)
        require(self.num_timesteps >= 1, "num_timesteps", "at least 1", self.num_timesteps)
        require(
            0 < self.beta_start <= self.beta_end < 1, "beta_start", f"in (0, beta_end={self.beta_end}]", self.beta_start
        )


@dataclass(frozen=True, kw_only=True)
class GuidanceConfig:
    """What pulls the reverse process (docs/math.md E10 to E13)."""

    kind: GuideKind = "adversarial"
    """What pulls: an adversarially trained network, the pixels of the input (GDMP), or nothing (DiffPure)."""
    scale: float = 0.0
    """s, the strength of the pull; 0 runs the unguided plan and never the guide. With normalised=True this is the ratio r
    itself."""
    form: GuidanceForm = "score"
    """Whether the pull is added to the score, or to the mean of each step, where it grows with the step's variance."""
    growth: Growth = "constant"
    """The scale from step to step: s everywhere (constant), or s times the noise-to-signal ratio sigma/sqrt(alpha_bar), as GDMP
    (noise)."""
    label_weight: float = 1.0
    """w_y, the weight of the label term."""
    latent_weight: float = 1.0
    """w_d, the weight of the distance between features."""
    pseudo_label: PseudoLabel = "pseudo"
    """What the label term pulls to: the class that the guide sees in the input, the guide's probabilities (soft), or nothing
    (none)."""
    look_at: GuidanceInput = "xt"
    """Where the guide looks: the noisy x_t, or the Tweedie estimate x0."""
    normalised: bool = False
    """Give every pull the same length, that of unit noise prediction."""
    norm_eps: float = 1e-6
    """Added in quadrature to the length that a normalised pull is divided by, so that a pull of 0 stays 0."""

    def __post_init__(self) -> None:
        one_of("kind", self.kind, GuideKind)
        one_of("form", self.form, GuidanceForm)
        one_of("growth", self.growth, Growth)
        one_of("pseudo_label", self.pseudo_label, PseudoLabel)
        one_of("look_at", self.look_at, GuidanceInput)
        require(self.scale >= 0, "scale", "at least 0", self.scale)
        constant = self.growth == "constant"
        require(constant or not self.normalised, "growth", "constant for a normalised pull, whose length is s", self.growth)
        require(self.norm_eps > 0, "norm_eps", "positive", self.norm_eps)
        require(self.label_weight >= 0, "label_weight", "at least 0", self.label_weight)
        require(self.latent_weight >= 0, "latent_weight", "at least 0", self.latent_weight)


@dataclass(frozen=True, kw_only=True)
class PurifierConfig:
    """How to purify. Immutable and printable: the log line is the experiment."""

    t_star: int = 70
    """Noising steps; larger washes out more attack, and more image."""
    sampler: Sampler = "ddpm"
    """The reverse process: ddpm (posterior variance), ddpm_large (the step's own variance), ddpm_learned (what the network says
    lies between the two, for each pixel), ddim, or Euler-Maruyama on the VP-SDE as DiffPure (linear schedules only)."""
    num_steps: int | None = None
    """Reverse steps, evenly strided over t_star; None walks every timestep."""
    timesteps: tuple[int, ...] | None = None
    """The timesteps visited, falling from t_star - 1, where even strides will not do; config/timesteps.py writes the spacings of
    diffusers and of guided-diffusion."""
    landings: tuple[int, ...] | None = None
    """Where the step from each of these timesteps lands, -1 being the clean image; None: on the next one, the last on -1."""
    time_labels: TimeLabels = "index"
    """vp_sde only: the network is told the timestep's index, or as DiffPure tells guided-diffusion's networks, int(1000 t)."""
    last_noise: bool = False
    """ddpm_large only: draw noise in a last step from above timestep 0, too, as diffusers."""
    eta: float = 0.0
    """ddim only: 0 deterministic, 1 DDPM."""
    clip_x0: ClipX0 = "never"
    """Clip each step's estimate of the clean image to [-1, 1], and recompute the noise prediction from it (consistent), or not
    (x0_only: ddim only). Not linear: no gradient passes through a clipped value. One more pass over the images a step."""
    guidance: GuidanceConfig = GuidanceConfig()
    """What pulls the reverse process."""
    schedule: ScheduleConfig = ScheduleConfig()
    """The noise schedule of the diffusion model."""
    cycles: int = 1
    """How many times to repeat noising and denoising."""
    cycle_t_stars: tuple[int, ...] | None = None
    """t_star of each cycle in turn (gradual noise); the largest must be t_star. None: t_star in every cycle."""
    seed: int | None = None
    """Of the noise. None: fresh noise is not reproducible, and noise that is named (by ids, draw or fixed) is of seed 0."""
    noise: NoiseMode = "fresh"
    """For calls that do not name their noise: fresh in every call, the same in every call and for every image (fixed), or by a
    seed drawn from PyTorch's own generator, which torch.manual_seed sets (torch)."""
    gradient: GradientMode = "exact"
    """What differentiation sees of the purifier: its exact gradient, or an approximation that attackers use."""
    surrogate_steps: int = 5
    """Steps of the shorter loop that gradient="surrogate" differentiates."""
    image_range: tuple[float, float] = UNIT_RANGE
    """Lowest and highest value of the images that go in, and of those that come out: (0, 1), (-1, 1), (0, 255)."""
    clip_input: bool = False
    """Cut images that leave image_range to it, and their gradient with them, in place of refusing them."""
    clamp: bool = True
    """Cut what comes out to image_range. DiffPure does not, so that its gradient is not cut either; files always are."""
    sizes: Sizes = "exact"
    """Which images are taken: the network's own size alone (exact); resized to it and back bilinearly, as DiffPure does (resize);
    cut into overlapping tiles of it (tile); or at their own height and width (native), where attention and the norms' statistics
    see more or fewer pixels than in training."""
    tile_stride: int | None = None
    """sizes="tile" only: pixels from one tile to the next; None: three quarters of a tile."""

    def __post_init__(self) -> None:
        self._hold_tuples()
        self._hold_range()
        self._hold_seed()
        one_of("sampler", self.sampler, Sampler)
        one_of("noise", self.noise, NoiseMode)
        one_of("gradient", self.gradient, GradientMode)
        one_of("sizes", self.sizes, Sizes)
        last = self.schedule.num_timesteps
        require(1 <= self.t_star <= last, "t_star", f"in [1, {last}]", self.t_star)
        require(0 <= self.eta <= 1, "eta", "in [0, 1]", self.eta)
        one_of("clip_x0", self.clip_x0, ClipX0)
        x0_only = "'never' or 'consistent' unless sampler='ddim'"
        require(self.clip_x0 != "x0_only" or self.sampler == "ddim", "clip_x0", x0_only, self.clip_x0)
        require(self.cycles >= 1, "cycles", "at least 1", self.cycles)
        self._check_cycles()
        steps, least = self.num_steps, min(self.depths)
        name = "t_star" if self.cycle_t_stars is None else "least of cycle_t_stars"
        require(steps is None or 1 <= steps <= least, "num_steps", f"in [1, {name}={least}]", steps)
        self._check_timesteps()
        is_sde, is_linear = self.sampler == "vp_sde", self.schedule.kind == "linear"
        require(is_linear or not is_sde, "sampler", "other than vp_sde unless the schedule is linear", self.sampler)
        one_of("time_labels", self.time_labels, TimeLabels)
        require(is_sde or self.time_labels == "index", "time_labels", "index, but for sampler='vp_sde'", self.time_labels)
        is_large = self.sampler == "ddpm_large"
        require(is_large or not self.last_noise, "last_noise", "false, but for sampler='ddpm_large'", self.last_noise)
        require(self.surrogate_steps >= 1, "surrogate_steps", "at least 1", self.surrogate_steps)
        require(self.seed is None or 0 <= self.seed < 2**63, "seed", SEEDS, self.seed)
        require(self.tile_stride is None or self.tile_stride >= 1, "tile_stride", "at least 1, or None", self.tile_stride)

    @property
    def depths(self) -> tuple[int, ...]:
        """t* of each cycle, [cycles]."""
        return (self.t_star,) * self.cycles if self.cycle_t_stars is None else self.cycle_t_stars

    @property
    def fewest_steps(self) -> int:
        """Reverse steps of the shortest cycle."""
        return self.num_steps or (len(self.timesteps) if self.timesteps else min(self.depths))

    def _check_cycles(self) -> None:
        stars = self.cycle_t_stars
        if stars is not None:
            require(len(stars) == self.cycles, "cycle_t_stars", f"{self.cycles} numbers, one a cycle (cycles)", stars)
            require(min(stars) >= 1, "cycle_t_stars", f"in [1, t_star={self.t_star}]", stars)
            require(max(stars) == self.t_star, "t_star", f"the largest of cycle_t_stars, {max(stars)}", self.t_star)

    def _hold_tuples(self) -> None:
        """Lists and arrays become tuples of plain integers: a configuration is hashable, and JSON."""
        for name in ("timesteps", "landings", "cycle_t_stars"):
            if (given := getattr(self, name)) is not None:
                whole = isinstance(given, Iterable) and all(isinstance(number, SupportsIndex) for number in given)
                require(whole, name, "a tuple of integers, or None", given)
                object.__setattr__(self, name, tuple(map(index, given)))

    def _hold_seed(self) -> None:
        """NumPy's integers become plain ones, which do not wrap at 64 bits."""
        whole = self.seed is None or isinstance(self.seed, SupportsIndex)
        require(whole, "seed", SEEDS, self.seed)
        object.__setattr__(self, "seed", None if self.seed is None else index(self.seed))

    def _hold_range(self) -> None:
        given = self.image_range
        numbers = isinstance(given, Iterable) and all(isinstance(number, SupportsFloat) for number in given)
        ends = tuple(map(float, given)) if numbers else ()
        fits = len(ends) == 2 and all(map(isfinite, ends)) and ends[0] < ends[1]
        require(fits, "image_range", "two numbers, the lower first, such as (0, 1), (-1, 1) or (0, 255)", given)
        object.__setattr__(self, "image_range", ends)

    def _check_timesteps(self) -> None:
        stops, landings = self.timesteps, self.landings
        require(stops is not None or landings is None, "landings", "None where timesteps is None", landings)
        if stops is None:
            return
        require(self.cycle_t_stars is None, "timesteps", "None where cycle_t_stars is given", stops)
        check_timesteps(stops, landings, self.t_star)
        require(self.num_steps in (None, len(stops)), "num_steps", f"None or {len(stops)}, as many as timesteps", self.num_steps)
