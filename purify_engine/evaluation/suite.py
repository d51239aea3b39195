"""Which attacks are run on which defence.

| suite | attacks | for |
|---|---|---|
| quick | the images as they are, one attack of each kind that has broken purifiers | a first look, and small machines |
| standard | every kind of attack of the protocol | the figures that are reported |
| thorough | the same with targeted, DLR and gradient-free ones beside them | a claim |

All rows of a table meet every attack of the suite that can be run on them, with the same number of gradients.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from purify_engine.config import AttackConfig, EvaluationConfig
from purify_engine.evaluation.autoattack import official
from purify_engine.evaluation.defences import GUIDE_ALONE, Defence

CLEAN = AttackConfig(name="standard", kind="none", epsilon=0.0)
TRANSFERRED, EXACT = "transferred", "exact"

QUICK = (CLEAN.name, TRANSFERRED, EXACT, "BPDA", "preview", "transfer from the guide")
STANDARD = (
    CLEAN.name, TRANSFERRED, EXACT, "straight-through", "exact, CE", "APGD", "DiffHammer", "BPDA", "surrogate",
    "preview", "preview start", "DDIM", "joint", "guide start", "feature matching", "transfer from the guide",
    "transfer from the guide, APGD-T", "transfer from others", "square", "low frequency", "exact, l2",
    "transfer from the guide, l2", "StAdv", "transfer from the guide, StAdv",
)  # fmt: skip
THOROUGH = (*STANDARD, "exact, targeted", "APGD, DLR", "APGD-T", "SPSA", "APGD, l2", "transfer from others, APGD")
OPTIONAL = ("autoattack", "autoattack-rand")  # only where they are asked for: their package is the user's to install
SUITES = {"quick": QUICK, "standard": STANDARD, "thorough": THOROUGH}

# Attacks whose only view of the purifier is its exact gradient: no evidence where that is masked.
BY_EXACT_GRADIENT = (
    EXACT, "exact, margin", "exact, CE", "exact, targeted", "APGD", "APGD, DLR", "APGD-T", "DiffHammer", "low frequency",
    "exact, l2", "APGD, l2", "StAdv",
)  # fmt: skip

# Attacks that do not use the exact gradient. One of them beating `exact` shows that the exact gradient is masked.
UNMASKING = (
    TRANSFERRED, "straight-through", "BPDA", "surrogate", "preview", "DDIM", "square", "SPSA", "transfer from the guide",
    "transfer from the guide, APGD-T", "transfer from others", "transfer from others, APGD",
)  # fmt: skip

MARGIN_CAP, MOMENTUM = 1.0, 0.75  # of the main attacks
MOST_STEPS = 4096


def attack_suite(config: EvaluationConfig) -> tuple[AttackConfig, ...]:
    """The attacks of `config.suite`, the clean images first."""
    known = known_attacks(config)
    return tuple(known[name] for name in SUITES[config.suite])


def known_attacks(config: EvaluationConfig) -> dict[str, AttackConfig]:
    """Every attack by its name, at the budget of `config`.

    The main attacks climb a capped margin with momentum and a decaying step, `num_steps` by `num_eot`, and then with `refine_eot`
    draws where an image still stands. Those that probe one weakness take half of the steps and of the draws, those that need no
    gradient through the purifier four times the steps, and none of either goes on where an image stands.
    """
    plain, main, light, cheap, halves = _budgets(config)
    apgd = replace(plain, kind="apgd", **halves)
    spatial = replace(plain, name="StAdv", kind="stadv", norm="spatial", epsilon=config.max_shift, **halves)
    l2: dict[str, Any] = {"norm": "l2", "epsilon": config.epsilon_l2}
    from_guide, from_others = replace(cheap, surface="guide"), replace(cheap, surface="others")
    attacks = {
        TRANSFERRED: replace(cheap, gradient="blind"),
        EXACT: main,
        "straight-through": replace(main, gradient="straight_through"),
        "exact, CE": replace(plain, **halves),
        "exact, targeted": replace(light, targets=3),
        "APGD": apgd,
        "APGD, DLR": replace(apgd, loss="dlr"),
        "APGD-T": replace(apgd, loss="dlr", targets=3),
        "DiffHammer": replace(light, kind="diffhammer", margin_cap=None, num_eot=config.num_eot),
        "low frequency": replace(light, kind="low_frequency"),
        "BPDA": replace(main, gradient="bpda"),
        "surrogate": replace(light, gradient="surrogate"),
        "preview": replace(main, gradient="preview"),
        "preview start": replace(light, start="preview"),
        "DDIM": replace(light, gradient="ddim"),
        "joint": replace(light, loss="joint", gradient="straight_through"),
        "guide start": replace(light, start="guide_worst", gradient="straight_through"),
        "feature matching": replace(cheap, loss="features"),
        "transfer from the guide": from_guide,
        "transfer from the guide, APGD-T": replace(apgd, surface="guide", loss="dlr", targets=9, num_steps=config.num_steps),
        "transfer from others": from_others,
        "transfer from others, APGD": replace(apgd, surface="others", num_steps=cheap.num_steps),
        "square": replace(plain, kind="square", loss="margin", num_steps=config.num_queries, num_eot=1),
        "SPSA": replace(plain, kind="spsa", loss="margin"),
        "exact, l2": replace(main, **l2, num_eot=light.num_eot, refine_steps=0),
        "APGD, l2": replace(apgd, **l2),
        "transfer from the guide, l2": replace(from_guide, **l2),
        "StAdv": spatial,
        "transfer from the guide, StAdv": replace(spatial, surface="guide", num_steps=cheap.num_steps),
        "autoattack": replace(plain, kind="autoattack", version="standard"),
        "autoattack-rand": replace(plain, kind="autoattack", version="rand"),
    }
    return {CLEAN.name: CLEAN, **{name: replace(attack, name=name) for name, attack in attacks.items()}}


def _budgets(config: EvaluationConfig) -> tuple[AttackConfig, AttackConfig, AttackConfig, AttackConfig, dict[str, Any]]:
    """The plain attack, the main one, the light and the cheap ones, and what halves a budget."""
    refined: dict[str, Any] = {"refine_steps": config.refine_steps, "refine_eot": config.refine_eot}
    plain = AttackConfig(
        name=EXACT, epsilon=config.epsilon, num_steps=config.num_steps, num_eot=config.num_eot, seed=config.seed
    )
    main = replace(plain, loss="margin", margin_cap=MARGIN_CAP, momentum=MOMENTUM, decay="cosine", **refined)
    halves: dict[str, Any] = {"num_steps": max(1, config.num_steps // 2), "num_eot": (config.num_eot + 1) // 2, "refine_steps": 0}
    light, cheap = replace(main, **halves), replace(main, num_steps=min(4 * config.num_steps, MOST_STEPS), refine_steps=0)
    return plain, main, light, cheap, halves


def fitted(attack: AttackConfig, defence: Defence) -> AttackConfig | None:
    """The attack as run on this defence, or None where another attack of the suite covers it.

    A deterministic defence needs no averaging over noise: it gets the same number of gradients as so many more steps. Attacks on
    the guide meet the guide alone as well, as attacks on itself. Raises NotInstalledError where AutoAttack is asked for and
    missing.
    """
    if attack.kind == "autoattack":
        official()
    if attack.surface == "guide" and defence.name == GUIDE_ALONE:
        attack = replace(attack, surface="defence")
    guided = attack.surface == "guide" or attack.start in ("guide", "guide_worst") or attack.loss in ("joint", "features")
    if (guided and defence.guide is None) or (attack.surface == "others" and not defence.others):
        return None
    if attack.gradient == "straight_through" and not uses_label(defence):  # then it is the exact gradient
        return _steadied(replace(attack, gradient="exact"), defence) if guided else None
    if defence.purifier is None and (attack.gradient not in ("exact", "blind") or attack.start == "preview"):
        return None
    return _steadied(attack, defence)


def _steadied(attack: AttackConfig, defence: Defence) -> AttackConfig | None:
    """With no more targets than there are other classes; for a deterministic defence with its draws as steps."""
    count = getattr(getattr(defence.classifier, "config", None), "num_classes", None)
    if count is not None and attack.kind != "none":
        if attack.loss == "dlr" and count < (4 if attack.targets else 3):
            return None
        attack = replace(attack, targets=min(attack.targets, count - 1))
    if defence.randomised or attack.kind in ("none", "square", "spsa", "autoattack"):
        return attack
    steady = replace(attack, num_steps=min(attack.num_steps * attack.num_eot, MOST_STEPS), num_eot=1)
    if not attack.refine_steps:
        return steady
    return replace(steady, refine_steps=min(attack.refine_steps * attack.refine_eot, MOST_STEPS), refine_eot=1)


def uses_label(defence: Defence) -> bool:
    """Whether the guidance takes an argmax, which no gradient passes: a pseudo-label of positive weight."""
    if defence.purifier is None or defence.guide is None:
        return False
    guidance = defence.purifier.config.guidance
    return guidance.scale > 0 and guidance.label_weight > 0 and guidance.pseudo_label == "pseudo"


def decisive(attack: AttackConfig) -> dict[str, object]:
    """The settings that finished cells are found by: those that every attack has, and any other that is not at its default."""
    default = AttackConfig(name=attack.name)
    return {name: value for name, value in vars(attack).items() if name in ALWAYS_NAMED or value != getattr(default, name)}


ALWAYS_NAMED = frozenset(
    "name kind norm epsilon step_size num_steps num_eot loss start surface gradient seed".split()  # noqa: SIM905
)
