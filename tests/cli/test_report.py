"""`purify-engine report`: a report again from what a run left."""

import json

import pytest


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
