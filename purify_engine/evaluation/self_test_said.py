"""What the self-test of rows found, in words: lines for a terminal, facts for a report, which rows have no gradient; and kept."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from purify_engine.evaluation.row_self_test import NONE
from purify_engine.files import append_json_line, read_json_lines


def without_gradient(self_test: Mapping[str, Any] | None) -> list[str]:
    """The rows of `row_self_tests` whose gradient is zero everywhere: attacks by it prove nothing."""
    rows = (self_test or {}).get("rows", {})
    return [name for name, found in rows.items() if found["gradient"] == NONE]


def self_test_facts(self_test: Mapping[str, Any]) -> dict[str, Any]:
    """For a report: whether all passed, and each row in a line."""
    facts = {name: value for name, value in self_test.items() if name != "rows"}
    return facts | {name: _in_a_line(found) for name, found in self_test.get("rows", {}).items()}


def _in_a_line(found: Mapping[str, Any]) -> str:
    words = [f"gradient {found['gradient']}", *found["reasons"]]
    if found["difference_error"] is not None:
        words.append(f"{found['difference_error']:.1e} from differences")
        rounding = f"rounding {found['rounding']:.1e}"
        words.append(f"{found['precision']} {found['attacked_error']:.1e} from float64 ({rounding})")
    if found["guide_share"]:
        noticed = {True: "noticed when detached", False: "not noticed when detached", None: "too little to be noticed"}
        words.append(f"the guide's share {found['guide_share']:.2f}, {noticed[found['detached_caught']]}")
    words.append(f"zero gradients: {100 * found['zero_images']:.3g} % of images, {100 * found['zero_pixels']:.3g} % of pixels")
    return "; ".join(words)


def self_test_said(self_test: Mapping[str, Any]) -> list[str]:
    """In lines: which rows failed and why, then whether all passed."""
    rows = self_test.get("rows", {})
    lines = [f"{name}: {reason}" for name, found in rows.items() for reason in found["reasons"]]
    of = f" for {len(rows)} rows" if rows else ""
    return [*lines, f"gradient self-test {f'passed{of}' if self_test['passed'] else 'FAILED: exact figures mean nothing'}"]


def keep_self_test(results: Path, self_test: Mapping[str, Any]) -> None:
    """Each row of `row_self_tests` as a line of a results file, unless the last one of that row says the same."""
    known = kept_self_tests(results)
    for name, found in self_test.get("rows", {}).items():
        plain = json.loads(json.dumps(found))
        if known.get(name) != plain:
            append_json_line(results, {"self_test": name, "found": plain})


def kept_self_tests(results: Path) -> dict[str, dict[str, Any]]:
    """What the last self-test of each row found, by the row's name; none where there is no file."""
    lines = read_json_lines(results) if results.exists() else []
    return {line["self_test"]: line["found"] for line in lines if "self_test" in line}
