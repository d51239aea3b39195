"""A purifier evaluated within minutes, on a machine that is there for no longer; finished cells are not computed again.

    python -m bench evaluate --purifier cifar10-small --data build/data --output build/cells.jsonl --seconds 540 -- --limit 512

What follows `--` is for `purify-engine evaluate`. What the command says is appended to evaluate-MACHINE.jsonl.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from bench.core.commands import SECONDS_TO_STOP, followed
from bench.core.run import begin, parser

TOY = ("--limit", "2", "--defences", "ours", "--attacks", "BPDA", "--num-steps", "1", "--num-eot", "1", "--num-draws", "1")


def main(words: list[str]) -> int:
    options = parser("evaluate", __doc__)
    options.add_argument("--purifier", default="digits", help="an embedded name, or a folder")
    options.add_argument("--data", default="digits", help="SOURCE of `purify-engine evaluate`")
    options.add_argument("--output", type=Path, help="JSON lines, one a cell; those of earlier runs are gone on with")
    options.add_argument("rest", nargs="*", help="after --: further options of `purify-engine evaluate`")
    run, chosen = begin("evaluate", options, words)
    rest = list(chosen.rest)
    if chosen.toy:
        rest += TOY
        chosen.output = chosen.output or Path(tempfile.mkdtemp(prefix="purify-toy-")) / "cells.jsonl"
    if chosen.output is None:
        options.error("--output says where the cells are")
    left = run.seconds_left - SECONDS_TO_STOP
    command = ["evaluate", chosen.data, "--purifier", chosen.purifier, "--output", str(chosen.output), "--device", chosen.device]

    def note(said: dict[str, Any]) -> None:
        run.records(kind="evaluation", purifier=chosen.purifier, cells=str(chosen.output), said=said)

    status = followed([*command, "--seconds", f"{max(1.0, left):g}", "--json", *rest], left + SECONDS_TO_STOP / 2, note)
    if status is None:
        run.note(chosen.purifier, f"not finished: the same command goes on with the cells of {chosen.output}")
    else:
        run.check(f"evaluate {chosen.purifier}", status == 0, f"exit status {status}, cells in {chosen.output}", status=status)
    return run.close()
