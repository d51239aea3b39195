"""The host's time without a GPU: what is asked of a device that takes none, and that nothing of it is left behind.

In a process of its own, where Triton's interpreter is off.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).parent.parent
AFTERWARDS = """
import torch
from bench.subjects.host_time import no_device
from purify_engine.ops import ORDER
x = torch.rand(2, 4, device="meta")
with no_device(lambda: torch.relu(x)) as counts:
    assert "meta" in ORDER
    before = counts.operations
    assert torch.relu(x).shape == x.shape and counts.operations == before + 1 and counts.kernels == 0
assert "meta" not in ORDER and torch.relu(x).shape == x.shape and counts.operations == before + 1
"""


def ran(*words):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr


def test_the_engine_asks_the_device_for_fewer_things_than_eager_pytorch(tmp_path):
    ran("-m", "bench", "host", "--toy", "--results", tmp_path)
    (path,) = tmp_path.iterdir()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    engine, eager = (line for line in lines if line["kind"] == "host")
    assert engine["variant"] == "engine, loop" and engine["triton"] > 5 and eager["triton"] == 0
    assert engine["triton"] + engine["operations"] < 0.75 * eager["operations"]
    assert engine["median"] > 0 and eager["median"] > 0


def test_work_on_the_meta_device_is_as_before_afterwards():
    ran("-c", AFTERWARDS)
