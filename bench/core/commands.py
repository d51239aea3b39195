"""A command of the package as a step of a measurement: in a process of its own, within its time, what it prints noted."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from bench.core.run import ROOT

SECONDS_TO_STOP = 20  # between SIGTERM and the end of our own time


def followed(words: Sequence[str], seconds: float, note: Callable[[dict[str, Any]], object]) -> int | None:
    """Run `python -m purify_engine WORDS`; its exit status, or None where it was stopped because `seconds` were over.

    Its lines are passed on; those that are JSON objects are told to `note`.
    """
    command = [sys.executable, "-u", "-m", "purify_engine", *words]
    print(f"       purify-engine {' '.join(words)}", flush=True)
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    reading = threading.Thread(target=_passed_on, args=(process, note), daemon=True)
    reading.start()
    ends, late = time.monotonic() + seconds, False
    try:
        process.wait(max(1.0, ends - time.monotonic()))
    except subprocess.TimeoutExpired:
        late = True
        process.terminate()
        try:
            process.wait(SECONDS_TO_STOP)
        except subprocess.TimeoutExpired:
            process.kill()
    reading.join(5)
    return None if late and process.returncode else process.returncode  # one that had just finished is finished


def _passed_on(process: subprocess.Popen[str], note: Callable[[dict[str, Any]], object]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        print(line, end="", flush=True)
        if line.startswith("{"):
            try:
                said = json.loads(line)
            except ValueError:
                continue
            note(said)
