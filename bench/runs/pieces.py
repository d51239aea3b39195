"""Data sets and trainings in pieces, to and from a machine that takes only so much at once.

    python -m bench pieces cut FOLDER INTO [--trip N] [--light]     python -m bench pieces join INTO FOLDER
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from bench.core import pieces


def main(words: list[str]) -> int:
    options = argparse.ArgumentParser("python -m bench pieces", description=(__doc__ or "").splitlines()[0])
    verbs = options.add_subparsers(dest="verb", required=True)
    cut = verbs.add_parser("cut", help="a folder into pieces of 13 MB, 39 MB a trip, each named with its hash in manifest.json")
    cut.add_argument("folder", type=Path)
    cut.add_argument("into", type=Path, help="gets a folder for every trip")
    cut.add_argument("--trip", type=int, help="only this one, and its pieces straight into INTO")
    cut.add_argument("--light", action="store_true", help="weights in bfloat16, and of checkpoints what it takes to go on")
    join = verbs.add_parser("join", help="pieces into the folder that they were cut from; light checkpoints become whole")
    join.add_argument("pieces", type=Path)
    join.add_argument("folder", type=Path)
    chosen = options.parse_args(words)
    try:
        return _cut(chosen) if chosen.verb == "cut" else _join(chosen)
    except (ValueError, OSError) as error:
        options.exit(2, f"{error}\n")


def _cut(chosen: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory(prefix="purify-light-") as folder:
        source = chosen.folder
        if chosen.light:
            from bench.subjects.light_training import lightened

            source = Path(folder)
            lightened(chosen.folder, source)
        plan = pieces.cut(source, chosen.into, chosen.trip)
    size = sum(piece.size for piece in plan.pieces)
    which = f"trip {chosen.trip} of {plan.trips}" if chosen.trip else f"{plan.trips} {'trips' if plan.trips > 1 else 'trip'}"
    print(f"{len(plan.files)} files, {size / 1e6:.1f} MB, {len(plan.pieces)} pieces: {which} in {chosen.into}")
    return 0


def _join(chosen: argparse.Namespace) -> int:
    plan = pieces.joined(chosen.pieces, chosen.folder)
    made = []
    if any(file.path.endswith(".light") for file in plan.files):
        from bench.subjects.light_training import restored

        made = restored(chosen.folder)
    also = f"; made whole: {', '.join(path.name for path in made)}" if made else ""
    print(f"{len(plan.files)} files in {chosen.folder}, each as its hash says{also}")
    return 0
