"""The extension reads and writes nothing that is not its own: every op under valgrind, odd sizes, exact buffers."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.system

ROOT = Path(__file__).parent.parent.parent
EVERY_OP = Path(__file__).with_name("every_op.py")


def test_every_op_stays_inside_its_buffers():
    assert shutil.which("valgrind"), "valgrind is missing; install it to run this check"
    command = ["valgrind", "--quiet", "--leak-check=no", sys.executable, str(EVERY_OP)]
    environment = {**os.environ, "PYTHONMALLOC": "malloc", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=1800)
    assert (run.returncode, run.stdout) == (0, "done\n"), run.stderr[-4000:]
    # Python's own import machinery draws complaints; ours would have the extension in their stack.
    complaints = [block for block in run.stderr.split("==\n") if "_C.cpython" in block or "purify::" in block]
    assert not complaints, complaints[0]
