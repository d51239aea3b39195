"""`python -m mutation list` and `python -m mutation tool FLOOR`: see `--help`, and CONTRIBUTING.md."""

from __future__ import annotations

import argparse
from pathlib import Path

from mutation import planted, sampled

ROOT = Path(__file__).parent.parent


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m mutation", description="Do the tests notice a fault?")
    parts = parser.add_subparsers(dest="part", required=True)

    listed = parts.add_parser("list", help="plant every fault of mutation/faults in a copy, one at a time")
    listed.add_argument("names", nargs="*", help="only these faults")
    listed.add_argument("--jobs", type=int, default=1, help="copies that are worked on at once")

    drawn = parts.add_parser("tool", help="a sample of mutmut's mutants of one floor")
    drawn.add_argument("floor", choices=sorted(sampled.FLOORS))
    drawn.add_argument("--sample", type=int, default=60, help="how many; 0 for all")
    drawn.add_argument("--seed", type=int, default=0, help="of the sample")
    drawn.add_argument("--jobs", type=int, default=1, help="mutants that are tested at once")

    asked = parser.parse_args()
    if asked.part == "list":
        return planted.run(ROOT, asked.names, asked.jobs)
    return sampled.run(ROOT, asked.floor, asked.sample, asked.seed, asked.jobs)


if __name__ == "__main__":
    raise SystemExit(main())
