"""kill -9 at random moments, with torch: the run that resumes is killed, too, and the one that resumes that."""

from __future__ import annotations

import random
import shutil
import threading
import time

import pytest

from tests.output_trees import damage, identical
from tests.soak.offspring import Parent
from tests.soak.torch_run import make_purifier
from tests.soak.torchless_run import make_folder

CHAINS, DEEP = 100, 3


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(how a run is begun, the output of one that nobody kills, its seconds)."""
    root = tmp_path_factory.mktemp("kills")
    purifier, source = make_purifier(root / "purifier"), make_folder(root / "in", count=24)
    options = ["--purifier", str(purifier), "--device", "cpu", "--part-size", "4", "--batch-size", "3"]
    with Parent("tests.soak.torch_run") as parent:

        def start(output):
            return parent.start("command", words=["purify", str(source), str(output), *options])

        started = time.monotonic()
        child = start(root / "whole")
        child.go()
        assert child.wait() == 0
        yield start, root / "whole", time.monotonic() - started


def killed(start, output, seconds):
    """Whether a run was killed `seconds` after it began: it may have ended by then."""
    child = start(output)
    timer = threading.Timer(seconds, child.kill)
    child.go()
    timer.start()
    code = child.wait()
    timer.cancel()
    assert code in (0, -9), f"exit code {code}"
    return code == -9


def test_killed_at_random_three_deep(world, tmp_path, reached):
    start, whole, seconds = world
    random.seed(0)
    kills = chains = 0
    while kills < CHAINS * DEEP:
        output, deep = tmp_path / "clean", 0
        shutil.rmtree(output, ignore_errors=True)
        while deep < DEEP and killed(start, output, random.uniform(0, seconds)):
            deep += 1
            assert not damage(output, whole) if output.exists() else True
        child = start(output)
        child.go()
        assert child.wait() == 0
        assert not identical(output, whole), f"after {deep} kills"
        kills, chains = kills + deep, chains + (deep == DEEP)
    reached("kill -9", kills, asked=CHAINS * DEEP, of="kills", three_deep=chains)
