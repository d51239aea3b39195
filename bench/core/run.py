"""What every measuring command shares: where it computes, how long it may take, and where its lines go.

A run begins with a line of kind "machine"; every line names the machine and the run (its start, UTC), since only figures of
one run are compared with one another.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from purify_engine.benchmark.harness import Records
from purify_engine.benchmark.machine import file_name, machine_card

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "bench" / "results"


@dataclass
class Run:
    """One run of a measuring command. `toy` asks for the smallest sizes: a dry run of the same code."""

    records: Records
    device: torch.device
    toy: bool = False
    ends: float = float("inf")
    failed: list[str] = field(default_factory=list)

    def check(self, name: str, ok: bool, says: str, **facts: Any) -> None:
        """Say and write down whether something holds."""
        self.records(kind="check", check=name, ok=ok, says=says, **facts)
        print(f"{'ok    ' if ok else 'FAILED'} {name}: {says}", flush=True)
        if not ok:
            self.failed.append(name)

    def note(self, name: str, says: str) -> None:
        """Say and write down why something has no figure. Nothing is dropped in silence."""
        self.records(kind="note", name=name, says=says)
        print(f"       {name}: {says}", flush=True)

    def figure(self, text: str, **record: Any) -> dict[str, Any]:
        """Say and write down a measurement."""
        print(f"       {text}", flush=True)
        return self.records(**record)

    def headline(self, name: str, value: float | str) -> None:
        """Write down a figure for the last line of `make gpu`."""
        self.records(kind="headline", name=name, value=value)

    @property
    def seconds_left(self) -> float:
        return self.ends - time.monotonic()

    def close(self) -> int:
        """The exit status: 1 where a check failed."""
        return 1 if self.failed else 0


def parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """The options that every measuring command has; `name` is what follows `python -m bench`."""
    options = argparse.ArgumentParser(f"python -m bench {name}", description=(description or "").splitlines()[0])
    options.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="in PyTorch's words")
    options.add_argument("--results", type=Path, help="folder of the JSON lines; bench/results, or a temporary one with --toy")
    options.add_argument("--seconds", type=float, default=3600, help="stop, and say what is left out, after this long")
    options.add_argument("--toy", action="store_true", help="smallest sizes: a dry run, whose figures mean nothing")
    return options


def begin(
    stem: str, options: argparse.ArgumentParser, words: Sequence[str], *, suffix: str = ""
) -> tuple[Run, argparse.Namespace]:
    """Read the command line and open FOLDER/STEM-MACHINE.jsonl. `suffix` says what the machine was held to, if anything."""
    chosen = options.parse_args(words)
    card = {**machine_card(chosen.device), "commit": commit()}
    card["machine"] += suffix
    started = datetime.now(timezone.utc).isoformat(timespec="microseconds")  # processes may begin within one second
    folder = chosen.results or (Path(tempfile.mkdtemp(prefix="purify-toy-")) if chosen.toy else RESULTS)
    path = folder / f"{stem}-{file_name(card['machine'])}.jsonl"
    records = Records(path, machine=card["machine"], run=started)
    records(kind="machine", command=stem, toy=chosen.toy, **card)
    ends = time.monotonic() + chosen.seconds
    return Run(records, torch.device(chosen.device), chosen.toy, ends), chosen


def commit() -> str | None:
    """The commit that is measured: what PURIFY_ENGINE_COMMIT says, else git's, with a + where sources differ from it.

    None where neither knows. `make gpu COMMIT=...` sets it: a copy without history may lie in a repository of another commit.
    """
    told, git = os.environ.get("PURIFY_ENGINE_COMMIT"), shutil.which("git")
    if told or git is None:
        return told or None
    name = subprocess.run([git, "-C", str(ROOT), "rev-parse", "--short=7", "HEAD"], capture_output=True, text=True, check=False)
    if name.returncode != 0:
        return None
    same = subprocess.run([git, "-C", str(ROOT), "diff", "--quiet", "HEAD", "--", ".", ":!bench/results"], check=False)
    return name.stdout.strip() + ("" if same.returncode == 0 else "+")
