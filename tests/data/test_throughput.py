"""The curve of a run's speed, worked out from events by hand."""

import datetime

import pytest

from purify_engine.data.throughput import BUCKETS, curve, sessions, time_of

BEGAN = datetime.datetime(2030, 1, 1, tzinfo=datetime.timezone.utc)


def at(second, event, **facts):
    return {"time": (BEGAN + datetime.timedelta(seconds=second)).isoformat(), "event": event, **facts}


def start(second, before=0, total=100):
    return at(second, "resumed" if before else "start", total=total, images_left=total - before)


def test_the_speed_is_what_was_finished_between_two_lines():
    shown = curve(sessions([start(0), at(10, "progress", done=20), at(20, "progress", done=80)]))
    assert shown.seconds == 20 and shown.rates == pytest.approx((2.0, 6.0)) and shown.most == pytest.approx(6.0)


def test_the_pause_before_a_resumed_run_is_left_out_and_marked():
    events = [start(0), at(10, "progress", done=40), start(90_000, before=30), at(90_010, "progress", done=90)]
    shown = curve(sessions(events))
    assert shown.seconds == 20 and shown.resumed == (10.0,) and shown.rates[0] == pytest.approx(4.0)
    assert shown.rates[-1] == pytest.approx(6.0)  # 60 of its own; what had been lost was done again


def test_parts_tell_the_speed_where_a_run_was_shorter_than_a_heartbeat():
    shown = curve(sessions([start(0), at(1, "part", part=0, count=10), at(2, "part", part=1, count=30)]))
    assert shown.rates == pytest.approx((10.0, 30.0))


def test_a_part_that_lags_behind_what_was_counted_takes_nothing_back():
    (session,) = sessions([start(0), at(1, "progress", done=25), at(2, "part", part=0, count=10)])
    assert session.points == [(0.0, 0), (1.0, 25), (2.0, 25)]


def test_a_long_run_is_shown_in_a_few_stretches_that_add_up():
    events = [start(0, total=10_000), *(at(10 * n, "progress", done=10 * n) for n in range(1, 1000))]
    shown = curve(sessions(events))
    assert len(shown.rates) == BUCKETS and shown.rates == pytest.approx([1.0] * BUCKETS)


def test_the_shares_of_a_run_are_added_by_the_clock():
    first = sessions([start(0), at(10, "progress", done=20), at(20, "progress", done=40)])
    second = sessions([start(10), at(20, "progress", done=60)])
    shown = curve([*second, *first])
    assert shown.seconds == time_of([*first, *second]) == 20 and shown.resumed == ()
    assert shown.rates[0] == pytest.approx(2.0) and shown.rates[-1] == pytest.approx(8.0)


def test_nothing_is_drawn_of_nothing_and_lines_that_tell_nothing_are_left_out():
    assert curve(sessions([])) is None and curve(sessions([start(0)])) is None
    odd = [at(1, "progress", done=9), {"time": "yesterday", "event": "start"}, {"time": "2030-01-01T00:00:00", "event": "start"}]
    assert sessions(odd) == []
    told = [at(0, "start", total="many", images_left=None), at(-5, "progress", done=-3), at(2, "progress", done=1e9)]
    (session,) = sessions(told)
    assert session.points == [(0.0, 0), (0.0, 0), (2.0, 0)]  # a clock that was set back, counts that are none
