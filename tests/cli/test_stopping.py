"""Ctrl-C and SIGTERM: the first asks, the second stops, the third ends the process; the command that goes on is told."""

import os
import signal
import subprocess

import pytest

from purify_engine.cli import run, stopping
from purify_engine.cli.stopping import Stopped, command_line
from purify_engine.data.run import Stop

SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143)]


@pytest.fixture(autouse=True)
def handlers():
    """As a terminal's process has them, and as they were."""
    before = {number: signal.getsignal(number) for number, _ in SIGNALS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_the_first_signal_asks_the_second_stops_the_third_ends_the_process(number, code, monkeypatch, capfd):
    stop, ended = Stop(), []
    monkeypatch.setattr(stopping.os, "_exit", ended.append)
    monkeypatch.setattr("sys.argv", ["purify-engine", "purify", "in", "out"])
    with stopping.stopping(stop):
        signal.raise_signal(number)
        assert stop.requested and "stopping" in capfd.readouterr().err
        with pytest.raises(Stopped) as stopped:
            signal.raise_signal(number)
        assert (
            stopped.value.code == code and not ended and stopped.value.said.endswith("; go on with: purify-engine purify in out")
        )
        with pytest.raises(Stopped):  # of the process that was not ended after all
            signal.raise_signal(number)
            raise Stopped(number)
        assert ended == [code]
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_what_is_left_is_told_with_the_command_that_goes_on(number, code, command, monkeypatch):
    def stopped_run(*args, **kwargs):
        with stopping.stopping(Stop()) as asked:
            signal.raise_signal(number)
            asked.raise_if_stopped(0)  # nothing is left: not stopped by it
            asked.raise_if_stopped(7)

    monkeypatch.setattr(run, "call", stopped_run)
    monkeypatch.setattr("sys.argv", ["purify-engine", "purify", "my images", "out", "--t-star", "50"])
    ended, out, err = command("purify")
    assert (ended, out) == (code, "")
    assert "stopped with 7 images left; go on with: purify-engine purify 'my images' out --t-star 50" in err


def test_a_signal_that_is_ignored_stays_so():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stop = Stop()
    with stopping.stopping(stop):
        signal.raise_signal(signal.SIGINT)
    assert not stop.requested and signal.getsignal(signal.SIGINT) is signal.SIG_IGN


@pytest.mark.parametrize("word", ["a b", "it's", "a\x1b[31m'\\x", "\u202eabc", "two\nlines", "\udcff1", "-", ""])
def test_a_shell_reads_the_command_back_and_a_terminal_obeys_none_of_it(word):
    line = command_line([word])
    assert line.isprintable()
    read = subprocess.run(["bash", "-c", f"printf %s {line.removeprefix('purify-engine ')}"], capture_output=True, check=True)
    assert read.stdout == os.fsencode(word)
