"""Intervals for accuracies, and paired comparisons of two defences on the same images (docs/math.md E22).

A score is one image's share of noise draws classified correctly, in [0, 1]; 0 or 1 for a deterministic defence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from purify_engine.config import require

Scores = Sequence[float]

_RESAMPLES, _BOOTSTRAP_SEED = 10_000, 0


@dataclass(frozen=True)
class Estimate:
    """A mean score with its interval, over n images. `masked`: another attack shows that it flatters the defence."""

    value: float
    low: float
    high: float
    n: int
    masked: bool = False
    no_gradient: bool = False
    """By an attack that climbs a gradient that is zero everywhere: no evidence of robustness."""

    @property
    def is_evidence(self) -> bool:
        """Whether it may be compared with others."""
        return not (self.masked or self.no_gradient)


@dataclass(frozen=True)
class PairedDifference:
    """Mean of a - b image by image, by the normal interval and by the bootstrap."""

    value: float
    low: float
    high: float
    bootstrap_low: float
    bootstrap_high: float
    n: int

    @property
    def significant(self) -> bool:
        """Whether both intervals exclude zero on the same side."""
        lows, highs = (self.low, self.bootstrap_low), (self.high, self.bootstrap_high)
        return min(lows) > 0 or max(highs) < 0


@dataclass(frozen=True)
class McNemar:
    """Images that one defence classifies and the other does not; `p_value` two-sided, exact binomial on those alone."""

    only_a: int
    only_b: int
    p_value: float


def wilson(scores: Scores, confidence: float = 0.95) -> Estimate:
    """Mean score with its Wilson interval.

    For fractional scores the successes are their rounded sum. That errs on the wide side: a score in [0, 1] of mean p
    has a variance of at most p (1 - p), the binomial's.
    """
    n = len(scores)
    require(n >= 1, "scores", "of at least one image", n)
    interval = stats.binomtest(round(sum(scores)), n).proportion_ci(confidence, method="wilson")
    return Estimate(float(np.mean(scores)), float(interval.low), float(interval.high), n)


def paired_difference(a: Scores, b: Scores, confidence: float = 0.95) -> PairedDifference:
    """Mean of a - b over the same images. The images are what varies: draws are averaged inside each score."""
    difference = _paired(a, b)
    half = (
        stats.norm.ppf((1 + confidence) / 2) * difference.std(ddof=1) / np.sqrt(len(difference))
        if len(difference) > 1
        else np.inf
    )
    low, high = _bootstrap(difference, confidence)
    mean = float(difference.mean())
    return PairedDifference(mean, float(mean - half), float(mean + half), low, high, len(difference))


def mcnemar(a: Scores, b: Scores) -> McNemar:
    """Exact McNemar test on binary outcomes: an image counts as classified where more than half of its draws are right.

    For a randomised defence that majority is a coarser metric than the mean score; `paired_difference` is the one to
    quote, and this one answers whether the discordant images all lean one way.
    """
    _paired(a, b)
    right_a, right_b = np.asarray(a) > 0.5, np.asarray(b) > 0.5
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    p_value = stats.binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    return McNemar(only_a, only_b, float(p_value))


def _paired(a: Scores, b: Scores) -> np.ndarray:
    require(len(a) == len(b) and len(a) > 0, "scores", "of the same images, at least one", (len(a), len(b)))
    return np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)


def _bootstrap(difference: np.ndarray, confidence: float) -> tuple[float, float]:
    """Percentile interval of the mean, by a fixed seed."""
    n = len(difference)
    picks = np.random.default_rng(_BOOTSTRAP_SEED).integers(0, n, size=(_RESAMPLES, n))
    low, high = np.quantile(difference[picks].mean(axis=1), [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
