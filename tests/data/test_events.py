"""The diary of a run: what is told is there with its time, and no trouble with the file reaches the run."""

import datetime
import json
import os
import resource
import signal
import threading

import pytest

from purify_engine.data.events import MOST_FAILURES, Events, read_events, tell_all

START = {"total": 4, "parts": 2, "parts_left": 2, "images_left": 4}


def run(path, parts=((2, []), (2, [[3, "a\n\x1b[2J.png", "broken"]])), start=START):
    with Events(path) as told:
        told("start", **start)
        for index, (count, failed) in enumerate(parts):
            for item in range(count):
                told("item", ok=item >= len(failed))
            counts = {"part": index, "first": 0, "count": count, "ok": count - len(failed)}
            told("part", **counts, failed=failed, files=[["f", 7, "hash"]], sizes={})
        told("end", ok=3, failed=1)


def test_a_run_is_told_from_its_start_to_its_end(tmp_path):
    path = tmp_path / "events.jsonl"
    run(path)
    events = read_events(path)
    assert [event["event"] for event in events] == ["start", "part", "failure", "part", "progress", "end"]
    moments = [datetime.datetime.fromisoformat(event["time"]) for event in events]
    assert moments == sorted(moments) and all(moment.utcoffset() == datetime.timedelta(0) for moment in moments)
    assert events[1] == {**events[1], "part": 0, "count": 2, "ok": 2, "failed": 0, "bytes": 7}
    assert events[2] == {**events[2], "id": 3, "name": "a\n\x1b[2J.png", "reason": "broken"}
    assert events[4] == {**events[4], "done": 4, "failed": 1, "total": 4} and events[4]["rss_bytes"] > 1_000_000
    assert path.read_bytes().count(b"\n") == 6 and b"\x1b" not in path.read_bytes()


def test_a_run_that_goes_on_is_resumed_and_adds_to_the_diary(tmp_path):
    path = tmp_path / "events.jsonl"
    run(path)
    run(path, parts=[(1, [])], start={**START, "images_left": 1, "failed": 1})
    events = read_events(path)
    kinds = [event["event"] for event in events]
    assert [kind for kind in kinds if kind in ("start", "resumed", "end")] == ["start", "end", "resumed", "end"]
    assert [event["done"] for event in events if event["event"] == "progress"] == [4, 4]
    assert [event["failed"] for event in events if event["event"] == "progress"] == [1, 1]


def test_progress_is_written_also_while_nothing_is_finished(tmp_path):
    beats = threading.Semaphore(0)
    with Events(tmp_path / "e.jsonl", heartbeat=0.001) as told:
        whole = told.write

        def write(event, **facts):
            whole(event, **facts)
            beats.release()

        told.write = write
        told("start", **START)
        for _ in range(4):
            assert beats.acquire(timeout=30)
    events = read_events(tmp_path / "e.jsonl")
    assert sum(event["event"] == "progress" and event["done"] == 0 for event in events) >= 3


def test_only_the_first_failures_have_lines_of_their_own(tmp_path):
    failed = [[id, f"{id}.png", "broken"] for id in range(MOST_FAILURES - 10)]
    run(tmp_path / "e.jsonl", parts=[(100, failed), (100, failed)], start={**START, "total": 200, "images_left": 200})
    events = read_events(tmp_path / "e.jsonl")
    assert sum(event["event"] == "failure" for event in events) == MOST_FAILURES
    assert [event["failed"] for event in events if event["event"] == "part"] == [90, 90]


def test_what_ends_a_run_early_is_told(tmp_path):
    with pytest.raises(KeyboardInterrupt), Events(tmp_path / "e.jsonl") as told:
        told("start", **START)
        raise KeyboardInterrupt
    assert read_events(tmp_path / "e.jsonl")[-1]["error"] == "KeyboardInterrupt"


def test_a_line_that_a_kill_cut_short_costs_itself_alone(tmp_path):
    path = tmp_path / "e.jsonl"
    run(path)
    path.write_bytes(path.read_bytes()[:-9])
    run(path)
    kinds = [event["event"] for event in read_events(path)]
    assert kinds == ["start", "part", "failure", "part", "progress", "start", "part", "failure", "part", "progress", "end"]


@pytest.mark.parametrize("trouble", ["full", "a folder", "no folder", "a pipe without a reader"])
def test_trouble_with_the_file_never_reaches_the_run(trouble, tmp_path):
    path = tmp_path / "e.jsonl"
    if trouble == "full":
        path.symlink_to("/dev/full")
    elif trouble == "a folder":
        path.mkdir()
    elif trouble == "no folder":
        path = tmp_path / "absent" / "e.jsonl"
    else:
        os.mkfifo(path)
    with Events(path) as told:
        told("start", **START)
        for _ in range(1000):
            told("signal", what="x" * 100)
        told("end", ok=1)
        assert told.lost > 0 or path.is_fifo()  # which may hold them all


def test_a_disk_that_has_room_again_gets_the_lines_that_follow(tmp_path):
    """As by a limit of 300 bytes a file, which is lifted later."""
    path = tmp_path / "e.jsonl"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with Events(path) as told:
            told("start", **START)
            resource.setrlimit(resource.RLIMIT_FSIZE, (300, limits[1]))
            for number in range(9):
                told("signal", number=number)
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            told("end", ok=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    events = read_events(path)
    kept = [event["number"] for event in events if event["event"] == "signal"]
    assert kept == list(range(len(kept))) and 0 < len(kept) < 9
    assert [event["event"] for event in events[-2:]] == ["progress", "end"] and events[-2]["lines_lost"] == 9 - len(kept)


def test_every_observer_is_told():
    heard = []
    first, second = (lambda event, number=number, **facts: heard.append((number, event, facts)) for number in (1, 2))
    told = tell_all(first, second)
    told("item", ok=True)
    assert heard == [(1, "item", {"ok": True}), (2, "item", {"ok": True})]


def test_lines_that_are_no_events_are_left_out(tmp_path):
    lines = ["[1]", "{}", '{"event": 3, "time": "x"}', "not json", json.dumps({"event": "end", "time": "t"})]
    (tmp_path / "e.jsonl").write_bytes("\n".join(lines).encode() + b"\n\xff\xfe")
    assert read_events(tmp_path / "e.jsonl") == [{"event": "end", "time": "t"}]
    assert read_events(tmp_path / "none.jsonl") == []
