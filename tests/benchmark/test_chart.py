"""The charts: every point where it belongs, every text escaped, nothing fetched."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest

from purify_engine.benchmark.chart import bars, duration, lines, rate, write_chart, x_ticks, y_ticks
from purify_engine.benchmark.harness import Timing
from purify_engine.benchmark.throughput import Benchmark, Point


def benchmark(*points: Point) -> Benchmark:
    return Benchmark("<b>mine</b>", 5, "float32", "graph", {"machine": "a & b"}, points)


@pytest.fixture
def found():
    seconds = {("engine", 1): 0.01, ("eager fp32", 1): 0.04, ("engine", 64): 0.1, ("eager fp32", 64): 0.4}
    timed = [Point(name, batch, Timing.of([value, 1.5 * value])) for (name, batch), value in seconds.items()]
    return benchmark(*timed, Point("engine", 256, None, "out of memory"))


def test_more_images_per_second_stand_higher_and_larger_batches_further_right(found):
    engine, eager = lines(found)
    assert engine.name == "engine"
    for ours, theirs in zip(engine.points, eager.points, strict=True):
        assert ours[0] == theirs[0] and ours[1] < theirs[1]  # the page counts downwards
    assert engine.points[0][0] < engine.points[1][0] and engine.points[0][1] > engine.points[1][1]


def test_axes_are_logarithmic_and_labelled_by_what_stands_there(found):
    assert [tick.label for tick in x_ticks(found)] == ["1", "64"]
    ticks = [(tick.at, float(tick.label.replace(",", ""))) for tick in y_ticks(found)]
    assert len(ticks) >= 2
    (low, less), (high, more) = ticks[0], ticks[-1]
    point = lines(found)[0].points[0]
    expected = low + (high - low) * _log(64 / (0.01 * 1.25 * 64) / less) / _log(more / less)  # 80 images/s: batch 1 in 12.5 ms
    assert point[1] == pytest.approx(expected)


def _log(value):
    from math import log

    return log(value)


def test_names_do_not_overlap():
    same = Timing.of([0.1])
    labels = sorted(line.label_at for line in lines(benchmark(*(Point(str(n), b, same) for n in range(5) for b in (1, 2)))))
    assert all(after - before >= 16 for before, after in zip(labels, labels[1:], strict=False))


def test_bars_are_as_long_as_the_times(found):
    engine, eager = bars(found)
    assert eager.median == pytest.approx(4 * engine.median) and engine.median < engine.p99


def test_the_page_is_whole_escaped_and_fetches_nothing(found, tmp_path):
    html = write_chart(tmp_path / "deep" / "speed.html", found).read_text()
    assert "&lt;b&gt;mine&lt;/b&gt;" in html and "<b>mine" not in html and "a &amp; b" in html
    assert "<script" not in html and "http" not in html.replace("http-equiv", "") and "default-src 'none'" in html
    drawings = [ET.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", html, re.DOTALL)]
    assert [len(drawing.findall(".//path")) for drawing in drawings] == [2, 0]
    assert "out of memory" in html and "4.00×" in html


def test_a_benchmark_without_a_single_timing_still_says_why(tmp_path):
    html = write_chart(tmp_path / "speed.html", benchmark(Point("engine", 1, None, "out of memory"))).read_text()
    assert "out of memory" in html and "<svg" not in html


@pytest.mark.parametrize(
    ("seconds", "text"), [(2.0, "2 s"), (0.0125, "12.5 ms"), (1.234e-5, "12.3 µs"), (5e-10, "0.5 ns"), (1234.0, "1,234 s")]
)
def test_durations_read_well(seconds, text):
    assert duration(seconds) == text


def test_rates_read_well():
    assert [rate(12345.6), rate(0.01234)] == ["12,346", "0.0123"]
