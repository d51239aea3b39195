"""What `purify --plan` says."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING

from purify_engine.cli.console import say

if TYPE_CHECKING:
    from purify_engine.data.planning import Plan

NO_ROOM = 5


def say_plan(plan: Plan, *, as_json: bool) -> int:
    """Print the plan; the exit code: 5 where the disk is too small."""
    say(plan.as_record(), _text(plan), as_json=as_json)
    return NO_ROOM if plan.refusal else 0


def _text(plan: Plan) -> str:
    classes = "" if plan.classes is None else f" of {plan.classes} classes"
    began = "" if plan.left == plan.items else f", {plan.left} of them left to do"
    sizes = ", ".join(f"{count} of {size}" for size, count in plan.sizes.items())
    broken = f", {plan.unreadable} cannot be purified" if plan.unreadable else ""
    lines = [
        f"{plan.items} images{classes}{began}, in {plan.parts} parts; {plan.skipped} other things are skipped",
        f"looked at: {plan.sampled}: {sizes or 'no image'}{broken}",
        f"disk: about {plan.disk_bytes:,} bytes, {plan.free_bytes:,} are free",
        f"time: about {_duration(plan.seconds)}",
    ]
    return "\n".join(lines + ([plan.refusal] if plan.refusal else []))


def _duration(seconds: float | None) -> str:
    return "unknown" if seconds is None else str(datetime.timedelta(seconds=max(1, round(seconds))))
