"""Checkpoints of a running training: written whole or not at all, and read without running anyone's code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from purify_engine.config import require
from purify_engine.files import write_whole


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write tensors, numbers and strings; whole or not at all."""
    write_whole(path, lambda temporary: torch.save(state, temporary))


def load_checkpoint(path: Path, experiment: dict[str, Any], free: tuple[str, ...] = ()) -> dict[str, Any]:
    """The state of an interrupted run of the same `experiment`; what is `free` may differ. ValueError says what else does."""
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    then = state["experiment"]
    named = (then.keys() | experiment.keys()) - {*free}
    changed = sorted(key for key in named if then.get(key) != experiment.get(key))
    differences = {key: (then.get(key), experiment.get(key)) for key in changed}
    require(not changed, "resume", f"of the configuration that wrote {path.name} (then, now)", differences)
    return state
