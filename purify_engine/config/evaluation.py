"""How to attack and how to measure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from purify_engine.config.checks import one_of, require
from purify_engine.config.purification import GradientMode

AttackKind = Literal["none", "pgd", "apgd", "diffhammer", "low_frequency", "square", "spsa", "stadv", "autoattack"]
AttackNorm = Literal["linf", "l2", "spatial"]
AttackLoss = Literal["cross_entropy", "margin", "dlr", "joint", "features"]
AttackStart = Literal["clean", "random", "guide", "guide_worst", "preview"]
AttackSurface = Literal["defence", "guide", "others"]
AttackGradient = Literal[GradientMode, "preview", "ddim"]
StepDecay = Literal["constant", "linear", "cosine"]
AutoAttackVersion = Literal["rand", "standard"]
Suite = Literal["quick", "standard", "thorough"]
DRAWS_PER_SEED = 2**20
_BALLS = ("linf", "l2")
_NORMS_OF_KIND = {"none": ("linf", "l2", "spatial"), "square": ("linf",), "stadv": ("spatial",)}


@dataclass(frozen=True, kw_only=True)
class AttackConfig:
    """One attack: what it may do, and how hard it tries. `name` is its column in every table."""

    name: str
    """Its column in every table."""
    kind: AttackKind = "pgd"
    """How it searches; none re-scores the clean images."""
    norm: AttackNorm = "linf"
    """What its budget is measured in."""
    epsilon: float = 0.15
    """The ball's radius in [0, 1] units; for norm="spatial" the largest shift, in pixels."""
    step_size: float | None = None
    """In the units of epsilon. None: 2.5 * epsilon / num_steps (Madry et al. 2018)."""
    num_steps: int = 20
    """Gradient steps, or queries of the Square attack."""
    num_eot: int = 4
    """Noise draws averaged in each step."""
    loss: AttackLoss = "cross_entropy"
    """What it climbs."""
    start: AttackStart = "random"
    """Where it starts; guide: at the adversarial example of the guide alone; guide_worst: at the worst of several; preview: at
    that of the same attack by gradient="preview"."""
    surface: AttackSurface = "defence"
    """What it attacks; guide: the guide alone, in the hope that this transfers; others: other classifiers, in the same hope."""
    gradient: AttackGradient = "exact"
    """What it sees of the purifier; blind: attack the classifier as if nothing stood before it; preview: a purifier of one step;
    ddim: one whose reverse process is deterministic."""
    seed: int = 0
    """Of random starts, proposals and noise draws."""
    momentum: float = 0.0
    """Share of the last direction that pgd and diffhammer keep (Dong et al. 2018)."""
    decay: StepDecay = "constant"
    """How the step of pgd and diffhammer falls to 0 from twice step_size; constant: step_size throughout."""
    margin_cap: float | None = None
    """A margin counts no more than this, in logits: draws that are fooled already pull no further. None: no cap."""
    targets: int = 0
    """Attack towards each of so many other classes, the likeliest first; the worst counts, image by image. 0: away from the
    label."""
    restarts: int = 1
    """Searches from other random starts; the worst counts, image by image."""
    refine_steps: int = 0
    """Further steps for images that still stand, from where they are, each averaged over refine_eot draws."""
    refine_eot: int = 16
    """Noise draws averaged in each of the refine_steps, and those by which an image counts as standing."""
    version: AutoAttackVersion = "rand"
    """Of AutoAttack, for kind="autoattack": rand is for random defences, standard for deterministic ones."""

    def __post_init__(self) -> None:
        one_of("kind", self.kind, AttackKind)
        one_of("norm", self.norm, AttackNorm)
        one_of("loss", self.loss, AttackLoss)
        one_of("start", self.start, AttackStart)
        one_of("surface", self.surface, AttackSurface)
        one_of("gradient", self.gradient, AttackGradient)
        one_of("decay", self.decay, StepDecay)
        one_of("version", self.version, AutoAttackVersion)
        norms = _NORMS_OF_KIND.get(self.kind, _BALLS)
        require(self.norm in norms, "norm", f"one of {', '.join(norms)} for kind={self.kind!r}", self.norm)
        require(self.epsilon >= 0, "epsilon", "at least 0", self.epsilon)
        require(self.step_size is None or self.step_size > 0, "step_size", "positive or None", self.step_size)
        require(1 <= self.num_steps <= 4096, "num_steps", "in [1, 4096]", self.num_steps)
        require(1 <= self.num_eot <= 256, "num_eot", "in [1, 256]", self.num_eot)
        require(0 <= self.seed < 512, "seed", "in [0, 512)", self.seed)
        require(0 <= self.momentum < 1, "momentum", "in [0, 1)", self.momentum)
        require(self.margin_cap is None or self.margin_cap > 0, "margin_cap", "positive or None", self.margin_cap)
        require(self.targets >= 0, "targets", "at least 0", self.targets)
        require(self.restarts >= 1, "restarts", "at least 1", self.restarts)
        require(self.refine_steps >= 0, "refine_steps", "at least 0", self.refine_steps)
        require(1 <= self.refine_eot <= 256, "refine_eot", "in [1, 256]", self.refine_eot)
        most = f"so few that an attack takes at most {DRAWS_PER_SEED} noise draws (restarts, targets and refinement included)"
        require(self.most_draws <= DRAWS_PER_SEED, "num_steps * num_eot", most, self.most_draws)

    @property
    def num_searches(self) -> int:
        """Starts times targets."""
        return self.restarts * max(1, self.targets)

    @property
    def draws_of_a_search(self) -> int:
        """Noise draws that one search takes at most, a first look and a verdict included."""
        steps = self.num_steps + (self.kind == "apgd")
        is_one = self.num_searches == 1 and not self.refine_steps and self.surface != "others"
        return steps * self.num_eot + (0 if is_one else self.refine_eot)

    @property
    def most_draws(self) -> int:
        """Noise draws that the whole attack takes at most."""
        refined = (self.refine_steps + 1) * self.refine_eot if self.refine_steps else 0
        return self.num_searches * self.draws_of_a_search + refined


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How hard to evaluate. The defaults are those of the handwritten digits, 8 by 8 pixels."""

    epsilon: float = 0.15
    """l_inf radius, [0, 1] units."""
    epsilon_l2: float = 0.75
    """l_2 radius, [0, 1] units."""
    max_shift: float = 0.3
    """Spatial attack: the largest shift, in pixels."""
    suite: Suite = "standard"
    """Which attacks: a quick look, the standard of reported figures, or a thorough one with more of them."""
    num_steps: int = 40
    """Of the main attacks."""
    num_eot: int = 6
    """Noise draws averaged in each step of the main attacks."""
    refine_steps: int = 10
    """Further steps of the main attacks, on images that still stand."""
    refine_eot: int = 16
    """Noise draws averaged in each of those, and by which an image counts as standing."""
    num_queries: int = 100
    """Of the Square attack."""
    num_draws: int = 10
    """K: attacks are scored on 2K fresh noise draws; comparisons pick the worst attack by K, and score it by the others."""
    confidence: float = 0.95
    """Of every interval."""
    seed: int = 0
    """Of the attacks, and of the noise draws that score them."""
    batch_size: int | None = None
    """Images that are attacked at once. None: as many as memory holds. Results differ by rounding alone."""
    fresh_draws: int = 50
    """Of each seed: noise draws that no attack has seen, which each image's worst attack is scored on again; 0: it is not."""
    fresh_seeds: int = 3
    """Seeds of those draws: their spread is what noise alone changes."""

    def __post_init__(self) -> None:
        for name in ("epsilon", "epsilon_l2", "max_shift"):
            require(getattr(self, name) >= 0, name, "at least 0", getattr(self, name))
        for name in ("num_steps", "num_eot", "refine_eot", "num_queries", "num_draws"):
            require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        require(self.refine_steps >= 0, "refine_steps", "at least 0", self.refine_steps)
        one_of("suite", self.suite, Suite)
        require(0 < self.confidence < 1, "confidence", "in (0, 1)", self.confidence)
        require(self.batch_size is None or self.batch_size >= 1, "batch_size", "at least 1 or None", self.batch_size)
        require(0 <= self.fresh_draws <= 4096, "fresh_draws", "in [0, 4096]", self.fresh_draws)
        require(1 <= self.fresh_seeds <= 64, "fresh_seeds", "in [1, 64]", self.fresh_seeds)


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """How much `purify-engine demo` does: at most two minutes on two cores by default."""

    epsilon: float = 0.15
    """l_inf radius, [0, 1] units."""
    transfer_steps: int = 40
    """Of the attack on the bare classifier."""
    num_adaptive: int = 64
    """Images that the adaptive attack is run on; a fixed choice."""
    adaptive_steps: int = 10
    """Of the adaptive attack."""
    num_eot: int = 2
    """Noise draws averaged in each step of the adaptive attack."""
    num_draws: int = 4
    """Fresh noise draws that every image is scored with."""
    num_exhibits: int = 12
    """Images of the contact sheet."""
    confidence: float = 0.95
    """Of every interval."""
    seed: int = 0
    """Of the attacks, and of the choice of images."""

    def __post_init__(self) -> None:
        require(self.epsilon >= 0, "epsilon", "at least 0", self.epsilon)
        for name in ("transfer_steps", "num_adaptive", "adaptive_steps", "num_eot", "num_draws", "num_exhibits"):
            require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        require(0 < self.confidence < 1, "confidence", "in (0, 1)", self.confidence)
