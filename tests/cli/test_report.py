"""`purify-engine report`: a report again from what a run left."""

import json

import numpy as np
import pytest
from PIL import Image

from purify_engine.data.events import read_events


@pytest.fixture
def cells(tmp_path):
    about = {"norm": "linf", "seconds": 1.0, "fingerprint": "f", "config": {"attack": {"epsilon": 8 / 255}, "num_draws": 5}}
    computed = {"device": "cpu", "precision": "float32", "gradients": "float32", "gpu": None}
    lines = [
        {**about, "defence": defence, "attack": "exact", "scores": scores, "selection": scores, "computed": computed}
        for defence, scores in (("ours", [1.0, 0.5, 1.0]), ("the guide alone", [1.0, 0.0, 1.0]))
    ]
    path = tmp_path / "cells.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_the_report_of_an_evaluation_is_made_of_its_cells(cells, command):
    code, out, err = command("report", cells, "--json")
    assert code == 0, err
    html = cells.with_suffix(".html").read_text(encoding="utf-8")
    assert json.loads(out) == {"report": str(cells.with_suffix(".html"))}
    for text in ("l∞, ε = 8/255", "the guide alone", "on cpu in float32", "<dt>noise draws an image</dt><dd>10</dd>", str(cells)):
        assert text in html, text
    assert cells.with_suffix(".figures.csv").read_text().count("\n") == 1 + 2  # two defences under the attack


def test_it_is_written_where_it_is_wanted(cells, tmp_path, command):
    assert command("report", cells, "--report", tmp_path / "sub" / "r.html")[0] == 0
    assert (tmp_path / "sub" / "r.html").exists() and not cells.with_suffix(".html").exists()


def test_without_a_finished_cell_there_is_no_report(tmp_path, command):
    (tmp_path / "none.jsonl").write_text("")
    code, _, err = command("report", tmp_path / "none.jsonl")
    assert code == 2 and "at least one finished cell" in err and err.count("\n") == 1


def test_a_purification_leaves_a_report_and_a_diary_that_cost_no_run_its_end(tmp_path, command, small_purifier):
    """Three images, one of them broken; then the report again, by its own verb and in the way of a run that goes on."""
    (tmp_path / "in").mkdir()
    for index in range(2):
        Image.fromarray(np.full((8, 8), 90 * index, np.uint8)).save(tmp_path / "in" / f"{index}.png")
    (tmp_path / "in" / "2\x1b[2J.png").write_bytes(b"no image")
    words = ["purify", tmp_path / "in", tmp_path / "out", "--purifier", small_purifier]
    code, out, err = command(*words)
    assert code == 3 and "\x1b" not in out + err
    page = tmp_path / "out" / "report.html"
    first = page.read_text(encoding="utf-8")
    assert "2 of 3 images are purified; 1 failed." in first and first.count("<figure") == 2
    assert "what the classifier reads there" in first  # the purifier has one beside it
    diary = tmp_path / "out" / "events.jsonl"
    assert [event["event"] for event in read_events(diary)] == ["start", "failure", "part", "progress", "end"]
    page.unlink()
    code, out, err = command("report", tmp_path / "out", "--json")
    assert code == 0 and json.loads(out) == {"report": str(page)}, err
    assert page.read_text(encoding="utf-8") == first
    page.unlink()
    page.mkdir()
    code, out, err = command(*words)
    assert code == 3 and "2 images purified" in out and "report.html could not be written" in err
    assert "resumed" in [event["event"] for event in read_events(diary)] and read_events(diary)[-2]["failed"] == 1


def test_what_is_no_result_is_refused_in_a_line(tmp_path, command):
    code, _, err = command("report", tmp_path / "nothing")
    assert code == 2 and "output must be one that `purify` wrote" in err and err.count("\n") == 1
