"""Figures in plain English."""

from __future__ import annotations

from collections.abc import Sequence

from bench.report.lines import Interval


def times_as_fast(ratio: Interval) -> str:
    """What a ratio of speeds decides, to be followed by the opponent's name."""
    if ratio.low > 1:
        return f"{ratio.value:.1f} times as fast as"
    if ratio.high < 1:
        return f"{1 / ratio.value:.1f} times as slow as"
    return "not told apart from"


def span_of(ratio: Interval) -> str:
    """What the quartiles of the calls leave open."""
    return f"{ratio.low:.1f} to {ratio.high:.1f}"


def listed(parts: Sequence[str]) -> str:
    """Several things in one sentence."""
    return parts[0] if len(parts) == 1 else f"{'; '.join(parts[:-1])}; and {parts[-1]}"
