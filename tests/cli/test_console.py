"""What the command says while it works: JSON lines every ten seconds, or a bar where stderr is a terminal."""

import io
import json

import pytest

from purify_engine.cli import console
from purify_engine.cli.console import Meter, say


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


def test_a_terminal_gets_a_bar_with_the_facts_beside_it(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(console.sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "140")
    monkeypatch.setenv("TERM", "xterm")
    with Meter("job") as meter:
        meter.update(3, 7, loss=0.123456, stage="warm")
    shown = terminal.getvalue()
    assert "job" in shown and "3/7" in shown and "loss 0.123" in shown and "stage warm" in shown and "0.1234" not in shown
    assert not shown.startswith("{")


def test_names_in_a_result_command_no_terminal(capsys):
    say({}, "one\n  \x1b[2J.png: \u202egnp", as_json=False)
    assert capsys.readouterr().out == "one\n  \\x1b[2J.png: \\u202egnp\n"


def test_a_result_is_text_or_one_json_line(capsys):
    say({"a": 1}, "one thing", as_json=False)
    say({"a": 1}, "one thing", as_json=True)
    assert capsys.readouterr().out == 'one thing\n{"a": 1}\n'
