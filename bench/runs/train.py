"""A recipe trained within minutes, on a machine that is there for no longer; what is unfinished goes on in the next run.

    python -m bench train --recipe cifar10-small --data build/data --output build/runs/cifar10-small --seconds 540

Appends the progress of every network to train-MACHINE.jsonl.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from bench.core.commands import SECONDS_TO_STOP, followed
from bench.core.run import begin, parser

AROUND = 60  # seconds for loading, for the figures of the cards and for the calibration
TOY = {"recipe": "digits", "data": "digits", "total": 3.0}


def main(words: list[str]) -> int:
    options = parser("train", __doc__)
    options.add_argument("--recipe", default="cifar10-small", help="of `purify-engine train recipe`")
    options.add_argument("--data", help="what the recipe is trained on, as its --data")
    options.add_argument("--output", type=Path, help="folder of the networks; one that an earlier run wrote is gone on with")
    options.add_argument("--networks", nargs="*", default=[], help="parts of the recipe, all by default")
    options.add_argument("--total", type=float, help="seconds of training of all runs together; by default those of this run")
    run, chosen = begin("train", options, words)
    if chosen.toy:
        for name, value in TOY.items():
            setattr(chosen, name, value)
        chosen.output = chosen.output or Path(tempfile.mkdtemp(prefix="purify-toy-"))
    if chosen.data is None or chosen.output is None:
        options.error("--data and --output say what the recipe is trained on, and where its networks are")
    left = run.seconds_left - SECONDS_TO_STOP
    total = chosen.total or max(1.0, left - AROUND)
    command = ["train", "recipe", chosen.recipe, str(chosen.output), "--data", chosen.data, "--seconds", f"{total:g}"]
    command += [word for name in chosen.networks for word in ("--part", name)]

    def note(said: dict[str, Any]) -> None:
        if "loss" in said or "trained" in said:
            run.records(kind="training", recipe=chosen.recipe, **said)

    status = followed([*command, "--resume", "--device", chosen.device, "--json"], left, note)
    if status is None:
        run.note(chosen.recipe, f"not finished: the same command goes on from the checkpoints in {chosen.output}")
    else:
        run.check(f"train {chosen.recipe}", status == 0, f"exit status {status}, networks in {chosen.output}", status=status)
    return run.close()
