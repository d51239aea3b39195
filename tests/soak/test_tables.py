"""Damaged Parquet files, Arrow streams and archives of arrays, read in processes of their own."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MUTATED, AT_ONCE = 10_000, 1_000


@pytest.mark.parametrize("kind", ["parquet", "arrow", "npz"])
def test_no_damage_ends_the_process_or_loses_a_row_unsaid(kind, reached):
    refused = rows = images = 0
    slowest = 0.0
    for first in range(0, MUTATED, AT_ONCE):
        command = [sys.executable, "-m", "tests.data.mutated_tables", kind, str(first), str(AT_ONCE)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, f"from seed {first}: {done.stderr[-2000:]}"
        counts = done.stdout.split()
        refused, rows, images = refused + int(counts[0]), rows + int(counts[1]), images + int(counts[2])
        slowest = max(slowest, float(counts[3]))
    assert images > 0 and slowest < 5
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
    facts = {"refused": refused, "rows": rows, "images": images, "slowest_s": round(slowest, 2), "peak_mib": memory}
    reached("tables", MUTATED, asked=MUTATED, of="mutated files", case=kind, **facts)
