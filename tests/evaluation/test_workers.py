"""Workers end with the evaluation that they work for."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from purify_engine.evaluation.workers import shared

pytestmark = pytest.mark.slow  # processes that import PyTorch

WORK = """
import os, sys, time
from purify_engine.evaluation.workers import shared

def work(seconds, place):
    open(place + f"/{os.getpid()}.pid", "w").close()
    time.sleep(seconds)
    return seconds

if __name__ == "__main__":
    for done in shared(work, [(0, sys.argv[1])] * 3 + [(600, sys.argv[1])] * 4, 2):
        print(done, flush=True)
"""


def pause(seconds):
    time.sleep(seconds)
    return seconds


def test_a_caller_that_stops_stops_the_workers():
    results = shared(pause, [(0,), (600,), (600,)], 2)
    assert next(results) == 0
    started = time.monotonic()
    results.close()
    assert time.monotonic() - started < 10 and not multiprocessing.active_children()


def test_an_error_of_one_task_is_the_callers_and_stops_the_others():
    with pytest.raises(TypeError):
        list(shared(pause, [("no number",), (600,)], 2))
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_signal_to_the_parent_ends_the_workers_within_seconds(number, tmp_path):
    (tmp_path / "work.py").write_text(WORK)
    ended_by = subprocess.Popen([sys.executable, "work.py", "."], cwd=tmp_path, stdout=subprocess.PIPE, text=True,
                                env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])})  # fmt: skip
    assert [ended_by.stdout.readline() for _ in range(3)] == ["0\n"] * 3
    workers = [int(path.stem) for path in tmp_path.glob("*.pid")]
    ended_by.send_signal(number)
    ended_by.wait(20)
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{worker}").exists() for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert workers and not any(Path(f"/proc/{worker}").exists() for worker in workers)


def test_an_evaluation_that_is_terminated_keeps_its_finished_cells_and_goes_on(tmp_path):
    results = tmp_path / "cells.jsonl"
    words = [sys.executable, "-m", "purify_engine", "evaluate", "--output", str(results), "--workers", "2", "--limit", "20"]
    words += ["--defences", "undefended", "--defences", "ours", "--num-draws", "1", "--num-steps", "1000", "--json"]
    words += ["--fresh-draws", "0"]  # or what is scored afresh at the end would be new lines
    words += ["--attacks", "standard"]
    running = subprocess.Popen([*words, "--attacks", "exact"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (results.exists() and results.read_text().count("\n") >= 2):
        time.sleep(0.1)
        assert running.poll() is None
    running.terminate()
    _, err = running.communicate(timeout=30)
    assert running.returncode == 143, err
    kept = results.read_text().splitlines()
    again = subprocess.run(words, capture_output=True, text=True, timeout=100)
    assert again.returncode == 0, again.stderr
    assert results.read_text().splitlines() == kept and len(json.loads(again.stdout)["rows"]) == 2
