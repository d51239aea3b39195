"""Numbers are generated, never typed: fills the marked blocks of README.md and docs/, and draws, from bench/results.

    python -m bench.figures            write every block and drawing again
    python -m bench.figures --check    only say which are out of date; exit code 1 if any is

A block stands between `<!-- generated:NAME -->` and `<!-- /generated:NAME -->`; NAME is one of `FIGURES`.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from bench import growth_chart, report, report_cpu
from purify_engine.evaluation.defences import GUIDE_ALONE, OURS, RIVALS
from purify_engine.evaluation.protocol import Cell, read_cells
from purify_engine.evaluation.report import figure, render_by_attack, render_table
from purify_engine.evaluation.statistics import Estimate
from purify_engine.evaluation.suite import CLEAN, EXACT, TRANSFERRED
from purify_engine.evaluation.summary import HEADLINE, UNION, compare, summarise

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench" / "results"
BLOCK = re.compile(r"(<!-- generated:([\w-]+) -->\n).*?(<!-- /generated:\2 -->)", re.DOTALL)

HEADLINE_COLUMNS = (CLEAN.name, TRANSFERRED, EXACT, HEADLINE)


def digits_headline() -> str:
    """The README's table: a row a defence, few columns."""
    return render_table([replace(row, columns=_headline(row.columns)) for row in summarise(digits_cells())])


def digits_attacks() -> str:
    """Every attack on every defence: a row an attack."""
    return render_by_attack(summarise(digits_cells()))


def digits_comparisons() -> str:
    """Ours against every other defence, image by image."""
    header = "| ours against | difference, points (95 % interval) | worst attack scored afresh | McNemar, majority of draws |"
    lines = [header, "|---|---|---|---|"]
    for item in compare(digits_cells(), OURS, RIVALS):
        gaps = (
            f"{100 * gap.value:+.1f} ({100 * gap.low:+.1f} to {100 * gap.high:+.1f})"
            for gap in (item.difference, item.fresh)
        )
        test = item.mcnemar
        counts = f"{test.only_a} images only ours, {test.only_b} only theirs, p = {test.p_value:.1g}"
        lines.append(f"| {item.b} | {' | '.join(gaps)} | {counts} |")
    return "\n".join(lines)


def digits_guide_alone() -> str:
    """Whether purifying beats the guide as the classifier, in words that the paired interval allows."""
    (item,) = compare(digits_cells(), OURS, (GUIDE_ALONE,))
    gap = item.difference
    verdict = "is better still" if gap.high < 0 else "is worse" if gap.low > 0 else "is as good"
    interval = f"{100 * gap.value:+.1f} points for ours, {100 * gap.low:+.1f} to {100 * gap.high:+.1f}"
    union = {row.defence: figure(row.columns[UNION]) for row in summarise(digits_cells())}
    return (
        f"On these digits the adversarially trained guide alone {verdict} under the attacks it was trained for ({interval}). "
        f"Other norms are another matter: with ℓ2 and spatial attacks the minimum is {union[OURS]} for ours, "
        f"{union['DiffPure']} for DiffPure, {union[GUIDE_ALONE]} for {GUIDE_ALONE}."
    )


FIGURES: dict[str, Callable[[], str]] = {
    "digits-headline": digits_headline,
    "digits-attacks": digits_attacks,
    "digits-comparisons": digits_comparisons,
    "digits-guide-alone": digits_guide_alone,
    "ops": report.ops,
    "cpu-steps": report.cpu_steps,
    "cpu-targets": report_cpu.cpu_targets,
    "cpu-unet": report_cpu.cpu_unet,
    "cpu-guides": report_cpu.cpu_guides,
    "cpu-guided-step": report_cpu.cpu_guided_step,
    "cpu-layers": report_cpu.cpu_layers,
    "cpu-memory": report_cpu.cpu_memory,
    "cpu-beside": report_cpu.cpu_beside,
    "gpu-targets": report.gpu_targets,
    "gpu-steps": report.gpu_steps,
    "gpu-ops": report.gpu_ops,
    "gpu-probe": report.gpu_probe,
    "gpu-checks": report.gpu_checks,
}
# Files that are drawn whole; nothing is written where nothing was measured
DRAWINGS: dict[Path, Callable[[], str]] = {ROOT / "docs" / "figures" / "cpu-growth.svg": growth_chart.growth}


def digits_cells() -> list[Cell]:
    """The committed evaluation on all held-out digits."""
    path = RESULTS / "digits.jsonl"
    if not path.exists():
        raise FileNotFoundError(f"{path.relative_to(ROOT)} is missing: `make evaluate-digits` writes it")
    return read_cells(path)


def filled(text: str) -> str:
    """`text` with every block written from the results."""

    def block(found: re.Match[str]) -> str:
        if found[2] not in FIGURES:
            raise KeyError(f"no figure is called {found[2]!r}; there are {', '.join(FIGURES)}")
        return f"{found[1]}{FIGURES[found[2]]()}\n{found[3]}"

    return BLOCK.sub(block, text)


def _headline(columns: dict[str, Estimate]) -> dict[str, Estimate]:
    return {name: columns[name] for name in HEADLINE_COLUMNS if name in columns}


def documents() -> list[Path]:
    return [path for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if path.exists()]


def outdated() -> dict[Path, str]:
    """Every file that is not what the results give, with what they give."""
    given = {path: filled(path.read_text()) for path in documents()}
    given |= {path: text for path, drawn in DRAWINGS.items() if (text := drawn())}
    return {path: text for path, text in given.items() if not path.exists() or path.read_text() != text}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if anything is out of date")
    check = parser.parse_args().check
    stale = outdated()
    for path, new in stale.items():
        print(f"{'out of date' if check else 'written'}: {path.relative_to(ROOT)}")
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(new)
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
