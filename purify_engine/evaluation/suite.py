"""Which attacks are run on which defence."""

from __future__ import annotations

from dataclasses import replace

from purify_engine.config import AttackConfig, EvaluationConfig
from purify_engine.evaluation.defences import Defence

CLEAN = AttackConfig(name="standard", kind="none", epsilon=0.0)
TRANSFERRED, EXACT = "transferred", "exact"

# Attacks whose only view of the purifier is its exact gradient: no evidence where that is masked.
BY_EXACT_GRADIENT = (EXACT, "exact, margin", "exact, l2", "StAdv")

# Attacks that do not use the exact gradient. One of them beating `exact` shows that the exact gradient is masked.
UNMASKING = (TRANSFERRED, "straight-through", "BPDA", "surrogate", "square", "transfer from the guide")


def attack_suite(config: EvaluationConfig) -> tuple[AttackConfig, ...]:
    """Every attack of the evaluation protocol that applies to small images, the clean images first.

    The main attacks climb with `num_steps` and `num_eot`. Those that probe one weakness take half of each, and those that need no
    gradient through the purifier four times the steps.
    """
    main = AttackConfig(
        name=EXACT, epsilon=config.epsilon, num_steps=config.num_steps, num_eot=config.num_eot, seed=config.seed
    )
    light = replace(main, num_steps=max(1, config.num_steps // 2), num_eot=(config.num_eot + 1) // 2)
    cheap = replace(main, num_steps=4 * config.num_steps)
    square = replace(main, name="square", kind="square", loss="margin", num_steps=config.num_queries, num_eot=1)
    l2 = replace(main, name="exact, l2", norm="l2", epsilon=config.epsilon_l2, num_eot=light.num_eot)
    spatial = replace(light, name="StAdv", kind="stadv", norm="spatial", epsilon=config.max_shift)
    from_guide = replace(cheap, name="transfer from the guide", surface="guide")
    return (
        CLEAN,
        replace(cheap, name=TRANSFERRED, gradient="blind"),
        main,
        replace(main, name="straight-through", gradient="straight_through"),
        replace(light, name="exact, margin", loss="margin"),
        replace(main, name="BPDA", gradient="bpda"),
        replace(light, name="surrogate", gradient="surrogate"),
        replace(light, name="joint", loss="joint", gradient="straight_through"),
        replace(light, name="guide start", start="guide", gradient="straight_through"),
        replace(cheap, name="feature matching", loss="features"),
        from_guide,
        square,
        l2,
        replace(from_guide, name="transfer from the guide, l2", norm="l2", epsilon=config.epsilon_l2),
        spatial,
        replace(spatial, name="transfer from the guide, StAdv", surface="guide", num_steps=cheap.num_steps),
    )


def fitted(attack: AttackConfig, defence: Defence) -> AttackConfig | None:
    """The attack as run on this defence, or None where another attack of the suite covers it.

    A deterministic defence needs no averaging over noise: it gets the same number of gradients as so many more steps.
    """
    guided = attack.surface == "guide" or attack.start == "guide" or attack.loss in ("joint", "features")
    if guided and defence.guide is None:
        return None
    if attack.gradient == "straight_through" and not uses_label(defence):  # then it is the exact gradient
        return replace(attack, gradient="exact") if guided else None
    if defence.purifier is None and attack.gradient not in ("exact", "blind"):
        return None
    if not defence.randomised and attack.kind != "square":
        return replace(attack, num_steps=attack.num_steps * attack.num_eot, num_eot=1)
    return attack


def uses_label(defence: Defence) -> bool:
    """Whether the guidance takes an argmax, which no gradient passes: a pseudo-label of positive weight."""
    if defence.purifier is None or defence.guide is None:
        return False
    guidance = defence.purifier.config.guidance
    return guidance.scale > 0 and guidance.label_weight > 0 and guidance.pseudo_label == "pseudo"
