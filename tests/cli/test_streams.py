"""stdout and stderr may be closed, full or unread: the work is done, and its exit code is the one of the work."""

import errno
import io
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import purify_engine
from purify_engine.cli import streams, threads
from purify_engine.cli.streams import printable, robust_streams

ROOT = Path(purify_engine.__file__).parent.parent
WORK = """
import os, sys
from purify_engine.cli.streams import robust_streams
with robust_streams():
    print("progress", file=sys.stderr, flush=True)
    print("result", flush=True)
    sys.stderr.isatty()
    with open(sys.argv[1], "w") as file:
        assert file.fileno() > 2, "a file of ours took the place of a standard stream"
        if "full" not in sys.argv[2]:
            os.write(2, b"a library's words, which must not go into the file")
        file.write("whole")
sys.exit(3)
"""


@pytest.mark.parametrize("to", ["2>&-", ">&-", ">&- 2>&- <&-", "2>/dev/full", "| head -c 0"])
def test_the_work_is_done_whatever_becomes_of_the_streams(to, tmp_path):
    words = ["bash", "-c", f'set -o pipefail; "$0" -c "$1" "$2" "$3" {to}', sys.executable, WORK, str(tmp_path / "a"), to]
    ended = subprocess.run(words, check=False, capture_output=True, cwd=ROOT)
    assert (ended.returncode, (tmp_path / "a").read_text()) == (3, "whole")
    assert b"Traceback" not in ended.stderr and b"Exception" not in ended.stderr


class Failing(io.StringIO):
    def __init__(self, number):
        super().__init__()
        self.number = number

    def write(self, text):
        raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize(("number", "code"), [(errno.EPIPE, 0), (errno.ENOSPC, 5)])
def test_a_result_that_is_not_read_is_no_failure_but_one_that_does_not_fit_is(number, code, command, monkeypatch):
    monkeypatch.setattr("sys.stdout", Failing(number))
    ended, _, err = command("--version")
    assert ended == code and ("No space left on device: standard output" in err) == (code == 5)


@pytest.mark.parametrize("text", ["a\x1b]0;title\x07", "\u202egnp.exe", "two\r\nlines\x9b", "\udc9b", "é ☃"])
def test_what_is_printed_commands_no_terminal(text):
    shown = printable(text)
    assert shown.replace("\n", "").isprintable() and shown.count("\n") == text.count("\n")
    assert shown == text or "\\" in shown


def test_warnings_and_tracebacks_are_escaped_too(monkeypatch, capsys):
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    streams.print_escaped_errors()
    assert warnings.formatwarning("in \x1b[2J.png", UserWarning, "file.py", 1) == "purify-engine: UserWarning: in \\x1b[2J.png\n"
    try:
        raise RuntimeError("in \x1b[2J.png")
    except RuntimeError as error:
        sys.excepthook(RuntimeError, error, error.__traceback__)
    said = capsys.readouterr().err
    assert "RuntimeError: in \\x1b[2J.png" in said and "test_streams.py" in said and "\x1b" not in said


def test_after_the_command_the_streams_are_those_of_before(capsys):
    before = sys.stdout, sys.stderr
    with robust_streams():
        print("é", file=sys.stderr)
    assert (sys.stdout, sys.stderr) == before and capsys.readouterr().err == "é\n"


def test_the_command_lets_threads_wait_without_spinning_unless_told_otherwise(monkeypatch):
    for name in threads.ASKED:
        monkeypatch.delenv(name, raising=False)
    threads.wait_without_spinning()
    assert os.environ["OMP_WAIT_POLICY"] == "passive"
    monkeypatch.delenv("OMP_WAIT_POLICY")
    monkeypatch.setenv("GOMP_SPINCOUNT", "1000")
    threads.wait_without_spinning()
    assert "OMP_WAIT_POLICY" not in os.environ
