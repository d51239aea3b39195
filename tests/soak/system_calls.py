"""Runs under strace: which system calls they make, and one of them made to fail, or to be the last.

strace counts the calls of each thread by itself, so the N-th call of a name is that of whichever thread comes to it.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from tests.soak.offspring import LONGEST, Child

FAMILIES = {
    "write": ("write", "pwrite64", "writev", "pwritev", "ftruncate", "copy_file_range", "sendfile"),
    "fsync": ("fsync", "fdatasync", "msync", "sync_file_range"),
    "rename": ("rename", "renameat", "renameat2", "link", "linkat"),
    "mkdir": ("mkdir", "mkdirat"),
    "open": ("open", "openat", "creat"),
    "unlink": ("unlink", "unlinkat", "rmdir"),
}
CALLS = tuple(name for names in FAMILIES.values() for name in names)
ACCIDENTS = {"SIGKILL": "signal=KILL", "ENOSPC": "error=ENOSPC", "EIO": "error=EIO"}
LINE = re.compile(r"^(\d+) +(\w+)\((.*)$")


class Point(NamedTuple):
    """The `at`-th call of `call` in a thread meets `accident`, a key of ACCIDENTS."""

    call: str
    at: int
    accident: str

    @property
    def injection(self) -> str:
        return f"inject={self.call}:{ACCIDENTS[self.accident]}:when={self.at}"


class Call(NamedTuple):
    """A line of the log: who called what, with its arguments and result as strace writes them."""

    thread: str
    name: str
    words: str


def require_strace() -> None:
    assert shutil.which("strace"), "strace is missing; install it to run this check"


def traced(child: Child, log: Path, point: Point | None = None) -> int:
    """Let `child` go under strace, which writes `log`; how it ended."""
    words = ["strace", "-f", "-y", "-qq", "-o", str(log), "-e", f"trace={','.join(map('?{}'.format, CALLS))}"]
    words += ["-e", point.injection] if point else []
    tracer = subprocess.Popen([*words, "-e", "signal=none", "-p", str(child.pid)], stderr=subprocess.PIPE, text=True)
    _wait_until_attached(child.pid)
    child.go()
    code = child.wait()
    tracer.communicate(timeout=LONGEST)
    return code


def _wait_until_attached(pid: int) -> None:
    status = Path(f"/proc/{pid}/status")
    while re.search(r"^TracerPid:\s+0$", status.read_text(), re.MULTILINE):
        time.sleep(0.001)


def calls(log: Path) -> list[Call]:
    """Every call of the log, in the order of their beginning."""
    lines = (LINE.match(line) for line in log.read_text(errors="replace").splitlines())
    return [Call(*line.groups()) for line in lines if line]


def points(log: Path) -> list[Point]:
    """Each place where a run that was traced can meet an accident."""
    most: Counter[str] = Counter()
    for (_, name), count in Counter((call.thread, call.name) for call in calls(log)).items():
        most[name] = max(most[name], count)
    places = [(name, at) for name, count in sorted(most.items()) for at in range(1, count + 1)]
    return [Point(*place, accident) for place in places for accident in ACCIDENTS]


def met(log: Path, code: int, point: Point) -> bool:
    """Whether the run came to the call."""
    return code == -signal.SIGKILL if point.accident == "SIGKILL" else "(INJECTED)" in log.read_text(errors="replace")
