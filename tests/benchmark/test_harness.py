"""Timing: quantiles, turns, budgets, the order of events around a call, and lines that survive a kill."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from purify_engine.benchmark.harness import CudaClock, Records, Timing, clocks, interleaved, read_records, wall_clock

ROOT = Path(__file__).parents[2]


def test_quantiles_of_known_numbers():
    timing = Timing.of([float(value) for value in reversed(range(101))])
    assert timing == Timing(101, 0.0, 25.0, 50.0, 75.0, 90.0, 99.0)
    assert timing.spread == 50.0


@pytest.mark.parametrize("count", [1, 2, 3, 10, 57])
def test_quantiles_are_numpys(count):
    seconds = np.random.RandomState(count).exponential(size=count)
    timing = Timing.of(seconds.tolist())
    expected = np.quantile(seconds, [0, 0.25, 0.5, 0.75, 0.9, 0.99])
    assert np.allclose([timing.min, timing.q25, timing.median, timing.q75, timing.p90, timing.p99], expected, rtol=1e-12)


def test_no_measurement_is_an_error():
    with pytest.raises(ValueError, match="seconds must be at least one measurement"):
        Timing.of([])


def test_variants_take_turns_and_warm_up_is_not_counted():
    calls: list[str] = []
    variants = {name: partial(calls.append, name) for name in ("ours", "theirs", "naive")}
    ticks = iter(range(1, 1000))

    def clock(call):
        call()
        return float(next(ticks))

    timings = interleaved(variants, clock, seconds=0, least=4, warm_up=2)
    assert calls == ["ours", "theirs", "naive"] * 6
    assert [timing.n for timing in timings.values()] == [4, 4, 4]
    assert [timing.min for timing in timings.values()] == [7.0, 8.0, 9.0]  # the six before it were the warm-up


def test_rounds_stop_when_the_time_is_over_and_at_the_most():
    assert interleaved({"it": lambda: None}, wall_clock, seconds=60, least=1, most=7)["it"].n == 7
    assert interleaved({"it": lambda: None}, lambda call: 1.0, seconds=0.0, least=2)["it"].n == 2


class RecordedDevice:
    """Stands in for torch.cuda: notes what the clock does, in order."""

    L2 = 2**28

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.current: list[object] = []  # what was made the current device, in turn
        self.used: set[object] = set()  # the devices that were asked about, or allocated on
        self.flushed = 0

    def Event(self, enable_timing):  # noqa: N802 (torch's name)
        name = "start" if not hasattr(self, "made") else "end"
        self.made = True
        note = self.seen.append
        return SimpleNamespace(
            record=lambda: note(name), synchronize=lambda: note("wait"), elapsed_time=lambda other: 2.5, name=name
        )

    def synchronize(self):
        self.seen.append("idle")

    def _sleep(self, cycles):
        self.seen.append("busy")

    def device(self, device):
        self.current.append(device)
        return contextlib.nullcontext()

    def get_device_properties(self, device):
        self.used.add(device)
        return SimpleNamespace(L2_cache_size=self.L2)

    def empty(self, size, *, device, dtype):
        self.flushed = size
        self.used.add(device)
        return SimpleNamespace(zero_=lambda: self.seen.append("flush"))


@pytest.mark.parametrize(
    ("cold", "queued", "order"),
    [
        (True, False, ["flush", "idle", "start", "call", "end", "wait"]),
        (False, False, ["idle", "start", "call", "end", "wait"]),
        (True, True, ["flush", "busy", "start", "call", "end", "wait"]),
    ],
)
def test_events_stand_around_the_call_and_the_flush_before_them(cold, queued, order, monkeypatch):
    device = RecordedDevice()
    monkeypatch.setattr(torch, "cuda", device)
    monkeypatch.setattr(torch, "empty", device.empty)
    seconds = CudaClock(cold=cold, queued=queued)(lambda: device.seen.append("call"))
    assert device.seen == order
    assert seconds == 0.0025  # events count milliseconds
    assert device.flushed >= 2 * device.L2 if cold else device.flushed == 0


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_clock_is_one_devices_whichever_is_the_current_one(device, monkeypatch):
    recorded = RecordedDevice()
    monkeypatch.setattr(torch, "cuda", recorded)
    monkeypatch.setattr(torch, "empty", recorded.empty)
    for clock in clocks(device).values():
        recorded.current.clear()
        clock(lambda: recorded.seen.append(f"call on {recorded.current[-1]}"))
        assert recorded.current == [device] and recorded.used == {device}
    assert recorded.seen.count(f"call on {device}") == 2


def test_every_line_that_was_written_survives_a_kill(tmp_path):
    code = f"""
from pathlib import Path
from purify_engine.benchmark.harness import Records
write = Records(Path({str(tmp_path / "lines.jsonl")!r}), machine="m")
for number in range(10**6):
    write(number=number)
    print(number, flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        said = [int(process.stdout.readline()) for _ in range(20)]
        process.send_signal(signal.SIGKILL)
    found = [record["number"] for record in read_records([tmp_path / "lines.jsonl"])]
    assert found[: len(said)] == said == list(range(20))


def test_a_line_cut_short_is_no_line_and_the_next_one_begins_afresh(tmp_path):
    path = tmp_path / "folder" / "lines.jsonl"
    write = Records(path, run="now")
    write(number=1)
    with path.open("a") as file:
        file.write('{"number": 2, "cut')
    assert write(number=3) == {"run": "now", "number": 3}
    assert [record["number"] for record in read_records([path])] == [1, 3]
    assert json.loads(path.read_text().splitlines()[-1]) == {"run": "now", "number": 3}
