"""What the command says while it works: JSON lines every ten seconds, or a bar where stderr is a terminal."""

import io
import json
import os
import re
import threading

import pytest

from purify_engine.cli import console
from purify_engine.cli.console import Meter, say
from purify_engine.cli.streams import robust_streams


@pytest.fixture
def clock(monkeypatch):
    now = {"seconds": 100.0}
    monkeypatch.setattr(console.time, "monotonic", lambda: now["seconds"])
    return now


def test_progress_is_a_line_every_ten_seconds_and_one_at_the_end(clock, capsys):
    with Meter("job") as meter:
        for second in (1.0, 9.9, 10.0, 19.9, 20.04):
            clock["seconds"] = 100 + second
            meter.update(int(second), 30, loss=0.5)
        meter.update(30, 30, loss=0.25)
    told = capsys.readouterr()
    assert told.out == ""
    lines = [json.loads(line) for line in told.err.splitlines()]
    assert [(line["done"], line["seconds"], line["loss"]) for line in lines] == [
        (10, 10.0, 0.5),
        (20, 20.0, 0.5),
        (30, 20.0, 0.25),
    ]
    assert {(line["job"], line["total"]) for line in lines} == {("job", 30)}


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    """A terminal on stderr: terminal(columns)."""

    def of(columns):
        shown = Terminal()
        monkeypatch.setattr(console.sys, "stderr", shown)
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setenv("TERM", "xterm")
        return shown

    return of


def test_a_terminal_gets_a_bar_with_the_facts_beside_it(terminal):
    shown = terminal(140)
    with Meter("job") as meter:
        meter.update(3, 7, loss=0.123456, stage="warm")
    shown = shown.getvalue()
    assert "job" in shown and "3/7" in shown and "loss 0.123" in shown and "stage warm" in shown and "0.1234" not in shown
    assert "/s" in shown and "memory" in shown and "gone" in shown and not shown.startswith("{")


def test_a_narrow_terminal_gets_what_matters_most(clock, terminal):
    shown = terminal(80)
    with Meter("purify") as meter:
        meter.begin(400_000, 1_000_000)
        clock["seconds"] += 10
        meter.update(403_670, 1_000_000, failed=4)
    last = re.sub("\x1b\\[[0-9;?]*[A-Za-z]", "", shown.getvalue()).split("\r")[-1]
    assert "403,670/1,000,000  367/s  0:27:05 left  failed 4" in last and "gone" not in last and "\n" not in last.strip()


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0, "0:00:00"), (59.7, "0:01:00"), (3599.4, "0:59:59"), (100_000, "27:46:40"), (900_000, "10.4 days")]
)
def test_times_are_read_at_a_glance(seconds, shown):
    assert console._clock(seconds) == shown


def test_names_command_no_terminal_and_are_no_markup(terminal):
    shown = terminal(140)
    with Meter("job") as meter:
        meter.update(1, 2, file="a\x1b[2J[bold]\u202e\n.png")
    assert "file a\\x1b[2J[bold]\\u202e\\n.png" in shown.getvalue()


def test_a_line_is_said_also_while_nothing_is_finished(monkeypatch, capsys):
    monkeypatch.setattr(console, "LINE_EVERY", 0.001)
    said = threading.Semaphore(0)
    with Meter("job") as meter:
        flush = console.sys.stderr.flush
        monkeypatch.setattr(console.sys.stderr, "flush", lambda: (flush(), said.release()))
        meter.begin(2, 5)
        for _ in range(3):
            assert said.acquire(timeout=30)
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert len(lines) >= 3 and lines[-1]["done"] == 2 and lines[-1]["total"] == 5 and lines[-1]["rss_bytes"] > 1_000_000
    assert lines[-1]["per_second"] == 0 and lines[-1]["seconds_left"] is None


def test_the_rate_is_of_this_job_and_the_rest_of_the_time_follows_from_it(clock, capsys):
    with Meter("job") as meter:
        meter.begin(100, 200)
        clock["seconds"] += 10
        meter.update(120, 200)
    (line,) = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert (line["per_second"], line["seconds_left"]) == (2.0, 40)


@pytest.mark.parametrize("trouble", ["full", "broken pipe", "none"])
def test_no_trouble_with_stderr_reaches_the_work(trouble, monkeypatch):
    stream = None
    if trouble == "full":
        stream = open("/dev/full", "w")  # noqa: PTH123, SIM115
    elif trouble == "broken pipe":
        reader, writer = os.pipe()
        stream = os.fdopen(writer, "w")
        os.close(reader)
    monkeypatch.setattr(console.sys, "stderr", stream)
    with robust_streams(), Meter("job") as meter:
        for done in range(3):
            meter.update(done, 2)


def test_a_result_is_text_or_one_json_line(capsys):
    say({"a": 1}, "one thing", as_json=False)
    say({"a": 1}, "one thing", as_json=True)
    assert capsys.readouterr().out == 'one thing\n{"a": 1}\n'
