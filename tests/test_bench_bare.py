"""The measuring commands on a machine that has PyTorch and Triton, and little else."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CARRIED = ("jaxtyping", "wadler_lindig", "safetensors")
LACKING = ("cyclopts", "rich", "PIL", "pillow", "scipy", "sklearn", "pytest", "_pytest", "purify_engine", "__editable__")


@pytest.fixture
def bare(tmp_path):
    """Runs code on a Python that lacks ours and many other packages; unless `carried`, those of `make gpu-carry` too."""

    def python(code, carried):
        site = tmp_path / ("carried" if carried else "bare")
        site.mkdir()
        lacking = LACKING if carried else (*LACKING, *CARRIED)
        for entry in Path(sysconfig.get_path("purelib")).iterdir():
            if not entry.name.startswith(lacking):
                (site / entry.name).symlink_to(entry)
        path = os.pathsep.join((str(site), str(ROOT)))
        environment = {**os.environ, "PYTHONPATH": path, "TRITON_INTERPRET": "1"}
        words = [sys.executable, "-S", "-c", code]
        return subprocess.run(words, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)

    return python


def test_everything_for_a_gpu_runs_with_what_is_carried(bare):
    modules = ["check_ops", "check_graph", "check_gradient", "precompile", "switches", "profile", "ops", "loop", "probe"]
    modules += ["compiled", "whole", "cold_start", "fp8", "train", "evaluate", "pieces", "exact_gradient"]
    code = "\n".join(f"import bench.{module}" for module in (*(f"runs.{module}" for module in modules), "tuning.conv3x3_tiles"))
    done = bare(f"{code}\nfrom bench.gpu import PARTS; print(*PARTS)", carried=True)
    assert done.stdout.split() == ["1", "2"], done.stderr


def test_the_probe_needs_nothing_carried_and_says_what_it_cannot_measure(bare, tmp_path):
    words = ["--toy", "--device", "cpu", "--results", str(tmp_path)]
    done = bare(f"from bench.runs.probe import main; raise SystemExit(main({words!r}))", carried=False)
    assert done.returncode == 0, done.stderr
    assert "kernel_counts: not measured: No module named" in done.stdout and "`make gpu-carry` fetches it" in done.stdout
    assert "a kernel" in done.stdout and "all 3x3 in" in done.stdout
