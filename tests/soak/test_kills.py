"""kill -9 at random moments, with torch: the run that resumes is killed, too, and the one that resumes that."""

from __future__ import annotations

import random
import shutil
import threading
import time
from contextlib import contextmanager

from tests.output_trees import damage, identical
from tests.soak.offspring import Parent
from tests.soak.torch_run import make_purifier
from tests.soak.torchless_run import make_folder

CHAINS, DEEP = 100, 3


class World:
    """Runs of the command line on 24 images in 6 parts, and the output of one that is not killed."""

    def __init__(self, parent, root):
        self.parent, self.whole = parent, root / "whole"
        self.source, self.purifier = make_folder(root / "in", count=24), make_purifier(root / "purifier")
        started = time.monotonic()
        assert self.finish(self.whole) == 0
        self.seconds = time.monotonic() - started

    def start(self, output):
        options = ["--purifier", str(self.purifier), "--device", "cpu", "--part-size", "4", "--batch-size", "3"]
        return self.parent.start("command", words=["purify", str(self.source), str(output), *options])

    def finish(self, output):
        child = self.start(output)
        child.go()
        return child.wait()

    def kills(self, output):
        """Whether a run was killed at a random moment: it may have ended before."""
        child, began = self.start(output), time.monotonic()
        timer = threading.Timer(random.uniform(0, self.seconds), child.kill)
        child.go()
        timer.start()
        code = child.wait()
        timer.cancel()
        assert code in (0, -9), f"exit code {code}"
        if code == 0:  # faster than the first one, which may have shared its processor
            self.seconds = min(self.seconds, time.monotonic() - began)
        return code == -9

    def chain(self, output):
        """How often a run was killed, DEEP times at most, before it was left alone."""
        shutil.rmtree(output, ignore_errors=True)
        deep = 0
        while deep < DEEP and self.kills(output):
            deep += 1
            assert not output.exists() or not damage(output, self.whole), f"after {deep} kills"
        assert self.finish(output) == 0
        assert not identical(output, self.whole), f"after {deep} kills"
        return deep


@contextmanager
def world(root):
    with Parent("tests.soak.torch_run") as parent:
        yield World(parent, root)


def test_killed_at_random_three_deep(tmp_path, reached):
    random.seed(0)
    deep = []
    with world(tmp_path) as runs:
        while sum(deep) < CHAINS * DEEP:
            deep.append(runs.chain(tmp_path / "clean"))
    reached("kill -9", sum(deep), asked=CHAINS * DEEP, of="kills", three_deep=deep.count(DEEP))
