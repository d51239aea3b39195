"""What papers claim on CIFAR-10, typed once: a WideResNet-28-10 behind each defence, ℓ∞ 8/255, accuracy in percent."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from purify_engine.markdown import table


class Claim(NamedTuple):
    """One row of a paper's table; None: not reported."""

    method: str
    source: str
    standard: float | None
    pgd_eot: float | None
    autoattack: float | None
    calls: str
    """Of the U-Net, for one verdict."""


AGDM = "arXiv 2403.16067"
CLAIMS = (
    Claim("no defence", AGDM, 94.78, 0.0, 0.0, "0"),
    Claim("adversarial training (Gowal et al. 2021)", "arXiv 2110.09468", 87.51, 66.01, 63.38, "0"),
    Claim("DiffPure (Nie et al. 2022)", "arXiv 2205.07460", 90.07, 51.25, 63.6, "100"),
    Claim("gradual noise, votes (Lee & Kim 2023)", "arXiv 2303.09051", 90.16, 55.82, 70.47, "470 × 10 votes"),
    Claim("ScoreOpt-N (Zhang et al. 2023)", "arXiv 2307.04333", 94.43, 65.62, None, "5–20"),
    Claim("AGDM, whose method this is (Lin et al. 2024)", AGDM, 90.42, 64.06, 78.12, "70"),
)

# What later evaluations say of such claims: (finding, source).
REVISIONS = (
    ("Wrong gradients, and a single purification as the test, inflated what was reported; with both mended it collapses",
     "DiffBreak, arXiv 2411.16598"),
    ("With the noise fixed, diffusion models raise accuracy under attack to about 24 %, where nearly 70 % had been reported",
     "arXiv 2505.22839"),
    ("Purifiers rely on randomness to evade the most effective direction of attack, rather than remove perturbations",
     "arXiv 2404.14309"),
)  # fmt: skip


def claims(results: Path) -> str:
    """The claims as a table; nothing in it was measured here."""
    header = ("method", "standard", "PGD+EOT", "AutoAttack", "U-Net calls", "source")
    rows = [(c.method, *map(_percent, (c.standard, c.pgd_eot, c.autoattack)), c.calls, c.source) for c in CLAIMS]
    return table(header, rows, left=(0, 5))


def revisions(results: Path) -> str:
    """What later evaluations found."""
    return "\n".join(f"- {finding} ({source})." for finding, source in REVISIONS)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


FIGURES: dict[str, Callable[[Path], str]] = {"published-claims": claims, "published-revisions": revisions}
