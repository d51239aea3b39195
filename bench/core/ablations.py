"""The ablations of a purifier, as data: what is varied, one thing at a time, from the base row.

A variant is a row of a table. Everything that it does not name is as in the base row, which every ablation begins with. Rows
whose settings are the same in two ablations are measured once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["undefended", "DiffPure", "GDMP", "ours", "the guide alone"]
Threat = Literal["linf", "linf, twice the radius", "l2", "StAdv"]

TERMS: dict[str, dict[str, Any]] = {  # what the guidance is made of
    "latent": {"latent_weight": 1.0, "label_weight": 0.0, "pseudo_label": "none"},
    "label": {"latent_weight": 0.0, "label_weight": 1.0, "pseudo_label": "pseudo"},
    "soft label": {"latent_weight": 0.0, "label_weight": 1.0, "pseudo_label": "soft"},
    "both": {"latent_weight": 1.0, "label_weight": 1.0, "pseudo_label": "pseudo"},
}


@dataclass(frozen=True)
class Variant:
    """One row: a defence, and where it differs from the base row."""

    name: str
    """The row's name, once in an ablation."""
    kind: Kind = "ours"
    place: float | None = None
    """Where it stands on the chart's axis; None: a row of the table alone."""
    term: str | None = None
    """Of `TERMS`; None: the base's."""
    ratio: float | None = None
    """r, the length of the pull beside that of unit noise prediction; None: the base's."""
    purifier: Mapping[str, Any] = field(default_factory=dict)
    """Fields of PurifierConfig, its guidance aside."""
    guidance: Mapping[str, Any] = field(default_factory=dict)
    """Fields of GuidanceConfig, its scale aside."""
    guide: str | None = None
    """The name of another guide, which the command line gives; None: the purifier's own. "two" is both."""
    classifier: str | None = None
    """The name of another classifier; None: the one that is defended everywhere."""
    attack: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the adaptive attack's AttackConfig."""
    radius: float = 1.0
    """Of every attack, in units of the evaluation's."""


@dataclass(frozen=True)
class Ablation:
    """A table, and a chart where variants have places."""

    about: str
    """What is asked, as the heading of its table."""
    variants: tuple[Variant, ...]
    axis: str | None = None
    """What is varied, under the chart."""
    threats: tuple[Threat, ...] = ("linf",)
    """The threat models of its columns."""


BASE = Variant("ours")
DIFFPURE, UNDEFENDED, GDMP, ALONE = (
    Variant("DiffPure", "DiffPure"),
    Variant("undefended", "undefended"),
    Variant("GDMP", "GDMP"),
    Variant("the guide alone", "the guide alone"),
)
LABEL, BOTH = Variant("ours, label", term="label"), Variant("ours, both", term="both")
ROWS = (BASE, UNDEFENDED, DIFFPURE, GDMP, ALONE)


def _over(name: str, values: Iterable[float], label: str = "{name} = {value:g}") -> tuple[Variant, ...]:
    """The base, and a variant for each value of a field of PurifierConfig."""
    made = (Variant(label.format(name=name, value=v), place=v, purifier={name: v}) for v in values)
    return BASE, *made


def _ratios(term: str, values: Iterable[float]) -> tuple[Variant, ...]:
    return BASE, DIFFPURE, *(Variant(f"{term}, r = {r:g}", place=r, term=term, ratio=r) for r in values)


def _deep(t_star: int, ratio: float) -> Variant:
    """The latent term's pull at another depth; 0: none."""
    return Variant(f"t* = {t_star}, r = {ratio:g}", term="latent", ratio=ratio, purifier={"t_star": t_star})


def _of_guide(name: str) -> tuple[Variant, ...]:
    """A purifier under another guide, that guide's own answer, and the purifier that takes the guide's label too."""
    return (
        Variant(f"ours, {name} guide", guide=name),
        Variant(f"ours, both terms, {name} guide", guide=name, term="both"),
        Variant(f"the {name} guide alone", "the guide alone", guide=name),
    )


OTHER_GUIDES = {
    "weak": "an early checkpoint of the guide's training",
    "plain": "trained on images without noise",
    "l2": "trained against l2 perturbations",
    "second": "of another architecture",
}
TWO = "two"  # the purifier's own guide and `second`, their features side by side

ABLATIONS: dict[str, Ablation] = {
    "rows": Ablation("The defences of every comparison", (*ROWS, LABEL, BOTH)),
    "ratio": Ablation(
        "How strongly the latent term pulls",
        _ratios("latent", (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.8, 1.2, 2.0)),
        "r, the pull beside unit noise prediction",
    ),
    "ratio-label": Ablation(
        "How strongly the label term pulls",
        (*_ratios("label", (0.02, 0.05, 0.1, 0.2, 0.3, 0.5)), ALONE),
        "r, the pull beside unit noise prediction",
    ),
    "t-star": Ablation("How deep the images are noised", _over("t_star", (20, 36, 50, 70, 100, 150)), "t*, noising steps"),
    "depth-ratio": Ablation(
        "Whether guidance lets images be noised deeper",
        (BASE, *(_deep(t_star, ratio) for t_star in (36, 50, 70, 100, 150) for ratio in (0.0, 0.1, 0.2, 0.4, 0.8))),
    ),
    "steps": Ablation(
        "How many reverse steps",
        _over("num_steps", (70, 35, 14, 7, 5, 3, 2, 1), "{value:g} steps"),
        "reverse steps, calls of the U-Net",
    ),
    "sampler": Ablation(
        "Which reverse process, and how random",
        (
            BASE,
            Variant("ddpm", purifier={"sampler": "ddpm"}),
            Variant("ddpm, the step's own variance", purifier={"sampler": "ddpm_large"}),
            *(Variant(f"ddim, eta = {eta:g}", purifier={"sampler": "ddim", "eta": eta}) for eta in (0.0, 0.5, 1.0)),
            Variant("vp_sde", purifier={"sampler": "vp_sde"}),
            Variant("two cycles", purifier={"cycles": 2}),
        ),
    ),
    "terms": Ablation(
        "What the guidance is made of",
        (BASE, DIFFPURE, *(Variant(term, term=term) for term in TERMS), GDMP, ALONE),
    ),
    "look-at": Ablation(
        "Where the guide looks, and how its pull is scaled",
        (
            BASE,
            Variant("x_t", guidance={"look_at": "xt"}),
            Variant("x0 estimate", guidance={"look_at": "x0"}),
            Variant("normalised", guidance={"normalised": True}),
            Variant("growing with the noise", guidance={"growth": "noise"}),
            Variant("in the mean", guidance={"form": "mean"}),
        ),
    ),
    "noise-aware": Ablation("A guide trained on noisy views or not", (*ROWS, *_of_guide("plain"))),
    "strength": Ablation(
        "How hard the adaptive attack tries",
        (
            BASE,
            *(Variant(f"{n} steps, EOT 1", place=n, attack={"num_steps": n, "num_eot": 1}) for n in (5, 10, 20, 40, 80)),
            *(Variant(f"10 steps, EOT {n}", attack={"num_steps": 10, "num_eot": n}) for n in (2, 4, 8, 16)),
        ),
        "gradient steps, at one draw each",
    ),
    "epsilon": Ablation(
        "How far the attacker may go",
        (BASE, *(Variant(f"{n:g} × the radius", place=n, radius=n) for n in (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0))),
        "the attacks' radius, in units of the one that the guide was trained for",
    ),
    "norms": Ablation(
        "Threats that the guide was not trained for",
        (*ROWS, *_of_guide("l2")),
        threats=("linf", "linf, twice the radius", "l2", "StAdv"),
    ),
    "guide-question": Ablation(
        "When does purification add to its own guide?",
        (
            *ROWS,
            BOTH,
            Variant("ours, a classifier like the guide", classifier="alike"),
            *(variant for name in OTHER_GUIDES for variant in _of_guide(name)),
            *_of_guide(TWO),
        ),
        threats=("linf", "linf, twice the radius", "l2", "StAdv"),
    ),
}


@dataclass(frozen=True)
class Radii:
    """How far attacks may go; of CIFAR-10 by default."""

    linf: float = 8 / 255
    l2: float = 0.5
    shift: float = 0.3
    """StAdv: pixels."""


@dataclass(frozen=True)
class Effort:
    """How hard attacks try, and how many noise draws score them."""

    steps: int = 10
    """Of the adaptive attack; the others, which need no gradient through the purifier, take four times as many."""
    eot: int = 1
    gradient: str = "exact"
    draws: int = 4
    """K; scores are of 2K draws, half to pick each image's worst attack by and half to score it with."""
    radii: Radii = field(default_factory=Radii)
