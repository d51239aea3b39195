"""Numbers are generated, never typed: fills the marked blocks of README.md and docs/, and draws, from bench/results.

    python -m bench figures            write every block and drawing again
    python -m bench figures --check    only say which are out of date; exit code 1 if any is

A block stands between `<!-- generated:NAME -->` and `<!-- /generated:NAME -->`; NAME is one of `FIGURES`.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path

from bench.core.run import RESULTS, ROOT
from bench.report import (
    cpu,
    digits,
    exact_gradient,
    gpu,
    gpu_tables,
    growth_chart,
    guide_activation,
    guide_question,
    launches,
    offline,
    published,
    reliability,
    robustness,
    sizing,
    switches,
    tables,
)

BLOCK = re.compile(r"(<!-- generated:([\w-]+) -->\n).*?(<!-- /generated:\2 -->)", re.DOTALL)

# Each writes one block from a folder of results.
FIGURES: dict[str, Callable[[Path], str]] = {
    **digits.FIGURES,
    **guide_activation.FIGURES,
    **guide_question.FIGURES,
    **robustness.FIGURES,
    **exact_gradient.FIGURES,
    **published.FIGURES,
    **tables.FIGURES,
    **cpu.FIGURES,
    **gpu.FIGURES,
    **gpu_tables.FIGURES,
    **switches.FIGURES,
    **launches.FIGURES,
    **reliability.FIGURES,
    **sizing.FIGURES,
    **offline.FIGURES,
}
# Files that are drawn whole; nothing is written where nothing was measured
DRAWINGS: dict[Path, Callable[[Path], str]] = {
    ROOT / "docs" / "figures" / "cpu-growth.svg": growth_chart.growth,
    **robustness.DRAWINGS,
}


def filled(text: str) -> str:
    """`text` with every block written from the results."""

    def block(marked: re.Match[str]) -> str:
        if marked[2] not in FIGURES:
            raise KeyError(f"no figure is called {marked[2]!r}; there are {', '.join(FIGURES)}")
        return f"{marked[1]}{FIGURES[marked[2]](RESULTS)}\n{marked[3]}"

    return BLOCK.sub(block, text)


def documents() -> list[Path]:
    return [path for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if path.exists()]


def outdated() -> dict[Path, str]:
    """Every file that is not what the results give, with what they give."""
    given = {path: filled(path.read_text()) for path in documents()}
    given |= {path: text for path, drawn in DRAWINGS.items() if (text := drawn(RESULTS))}
    return {path: text for path, text in given.items() if not path.exists() or path.read_text() != text}


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser("python -m bench figures", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if anything is out of date")
    check = parser.parse_args(words).check
    stale = outdated()
    for path, new in stale.items():
        print(f"{'out of date' if check else 'written'}: {path.relative_to(ROOT)}")
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(new)
    return 1 if check and stale else 0
