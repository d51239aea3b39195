"""Runs as children of a process that has imported everything and has run once: begun in no time, traced from their first call.

A child waits until it is told to go, so that a tracer can be attached to it before it does anything. What it runs is
`RUNS[name](**arguments)` of `tests/soak/torchless_run.py`, or of a module that is named; its value is the exit code.

    python -m tests.soak.offspring [MODULE]     one JSON line {"run", "arguments"} a run on stdin
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).parents[2]
ALONE = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
LONGEST = 60  # seconds of a run; one that takes longer hangs


class Child:
    """A run that waits for `go`. `code` of `wait()`: its exit code, or minus the signal that ended it."""

    def __init__(self, pid: int, parent: Parent) -> None:
        self.pid, self.parent = pid, parent

    def go(self) -> None:
        self.parent.say("go")

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        """The child is gone: how it ended."""
        return int(self.parent.hear())


class Parent:
    """`with Parent() as parent: child = parent.start("folder", source=..., output=...)`; one child at a time."""

    def __init__(self, module: str = "tests.soak.torchless_run") -> None:
        self.words = [sys.executable, "-m", "tests.soak.offspring", module]

    def __enter__(self) -> Parent:
        environment = {**os.environ, **ALONE, "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            self.words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=LONGEST)

    def start(self, run: str, **arguments: Any) -> Child:
        self.say(json.dumps({"run": run, "arguments": arguments}, default=str))
        return Child(int(self.hear()), self)

    def run(self, run: str, **arguments: Any) -> int:
        """The exit code of a run that meets no accident from outside."""
        child = self.start(run, **arguments)
        child.go()
        return child.wait()

    def say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def hear(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the parent of the runs has ended: what it printed stands above"
        return line


def main(module: str) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what runs print is no answer
    runs = importlib.import_module(module)
    runs.warm()
    for line in sys.stdin:
        asked = json.loads(line)
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(write)
            _run(runs.RUNS[asked["run"]], asked["arguments"], read)
        os.close(read)
        print(pid, file=answers, flush=True)
        sys.stdin.readline()  # "go"
        os.write(write, b"!")
        os.close(write)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), file=answers, flush=True)


def _run(run: Any, arguments: dict[str, Any], gate: int) -> None:
    """In the child, which never returns."""
    code = 1
    try:
        signal.alarm(LONGEST)
        os.read(gate, 1)
        code = run(**arguments)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


if __name__ == "__main__":
    main(sys.argv[1] if sys.argv[1:] else "tests.soak.torchless_run")
