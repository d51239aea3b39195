"""The presets of a purifier, as its ablation over steps chooses them (bench/report/presets.py says how).

    python -m bench choose-presets cifar10     prints what to put into the `presets` of config.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from bench.core.run import RESULTS
from bench.report.ablations import points
from bench.report.guide_question import ABLATED
from bench.report.presets import STEPS, of_results


def main(words: list[str]) -> int:
    options = argparse.ArgumentParser("python -m bench choose-presets", description=(__doc__ or "").splitlines()[0])
    options.add_argument("data", choices=list(ABLATED))
    options.add_argument("--results", type=Path, default=RESULTS, help="folder of the ablations' lines")
    asked = options.parse_args(words)
    choices = of_results(asked.results, asked.data)
    if not choices:
        print(f"nothing to choose from: python -m bench ablation {STEPS} --data ... writes ablations-{asked.data}.jsonl")
        return 1
    print(json.dumps({"presets": {choice.name: choice.changes() for choice in choices}}, indent=2))
    for choice in choices:
        said = f"clean {points(choice.clean)}, worst attack {points(choice.worst)} points to faithful"
        print(f"{choice.about}: {said}; lines {', '.join(line.record['key'] for line in choice.row.lines.values())}")
    return 0
