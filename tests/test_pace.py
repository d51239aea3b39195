"""How fast a job goes lately, worked out by hand on a clock of ours."""

import sys
from types import SimpleNamespace

import pytest

from purify_engine import pace
from purify_engine.pace import SAMPLES, Pace, memory


@pytest.fixture
def clock(monkeypatch):
    now = {"seconds": 1000.0}
    monkeypatch.setattr(pace.time, "monotonic", lambda: now["seconds"])
    return now


def test_the_rate_is_that_of_the_last_seconds_not_of_the_whole(clock):
    speed = Pace(window=10.0)
    for second in range(1, 101):
        clock["seconds"] += 1
        speed.update(second if second <= 50 else 50 + 4 * (second - 50))
    assert speed.rate == pytest.approx(4.0) and speed.seconds == 100
    assert speed.seconds_left(250 + 40) == pytest.approx(10.0)


def test_where_nothing_is_finished_the_rate_falls_to_zero_and_no_end_is_promised(clock):
    speed = Pace(window=10.0)
    clock["seconds"] += 1
    speed.update(20)
    rates = []
    for _ in range(12):
        clock["seconds"] += 1
        rates.append(speed.rate)
    assert rates == sorted(rates, reverse=True) and rates[3] == pytest.approx(20 / 5) and rates[-1] == 0
    assert speed.seconds_left(100) is None


def test_what_was_finished_before_is_no_speed(clock):
    speed = Pace()
    speed.begin(1_000_000)
    assert speed.rate == 0
    clock["seconds"] += 2
    speed.update(1_000_010)
    assert speed.rate == pytest.approx(5.0) and speed.seconds_left(1_000_020) == pytest.approx(2.0)


def test_a_million_updates_are_kept_as_a_few(clock):
    speed = Pace()
    for done in range(20_000):
        clock["seconds"] += 0.01
        speed.update(done)
    assert len(speed.samples) <= SAMPLES + 2 and speed.rate == pytest.approx(100, rel=0.03)  # by a sample's width


def test_memory_is_that_of_the_process_and_of_a_gpu_in_use(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace())  # while it is being imported
    assert memory().keys() == {"rss_bytes"} and memory()["rss_bytes"] > 1_000_000
    for used in (False, True):
        cuda = SimpleNamespace(is_initialized=lambda used=used: used, memory_reserved=lambda: 5)
        monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
        assert memory().get("gpu_bytes") == (5 if used else None)
