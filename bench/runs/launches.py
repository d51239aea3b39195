"""The launches of a guided step, counted without a GPU: by groups of kernels, with all faster ways, with none, and without each.

    python -m bench launches     writes bench/results/launches.jsonl afresh: the same on every machine
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from bench.core.run import RESULTS
from bench.subjects.step_launches import CASES, lines
from purify_engine.files import write_text


def main(words: list[str]) -> int:
    options = argparse.ArgumentParser("python -m bench launches", description=(__doc__ or "").splitlines()[0])
    options.add_argument("--results", type=Path, default=RESULTS, help="folder of launches.jsonl")
    chosen = options.parse_args(words)
    found = [line for case in CASES for line in lines(case)]
    for line in found:
        case = f"{line['network']} + {line['guide']}, batch {line['batch']}"
        print(f"{case}: {line['part']:<8}{line['state']:<32}{line['launches']:>5}", flush=True)
    write_text(chosen.results / "launches.jsonl", "".join(json.dumps(line) + "\n" for line in found))
    return 0
