import json
from html import unescape

import pytest
import torch

from purify_engine import GuidedPurifier
from purify_engine.config import DemoConfig
from purify_engine.data import digits
from purify_engine.evaluation import demo
from purify_engine.evaluation.statistics import wilson
from purify_engine.evaluation.summary import Row

LIGHT = ["--transfer-steps", 2, "--num-adaptive", 2, "--adaptive-steps", 1, "--num-eot", 1, "--num-draws", 1, "--num-exhibits", 2]


@pytest.fixture
def sixteen_images(monkeypatch):
    """The demonstration on sixteen digits instead of 360; the gradient of its first row alone is tested."""
    whole, tests = demo.run_demo, demo.row_self_tests
    monkeypatch.setattr(demo, "row_self_tests", lambda rows, *args, **kwargs: tests(rows[:1], *args, **kwargs))

    def part(purifier, classifier, images, labels, *args, **kwargs):
        return whole(purifier, classifier, images[:16], labels[:16], *args, **kwargs)

    monkeypatch.setattr(demo, "run_demo", part)


def test_the_demonstration_compares_five_defences_and_writes_a_report(sixteen_images, tmp_path, command):
    code, out, err = command("demo", "--report", tmp_path / "report.html", "--json", *LIGHT)
    assert code == 0, err
    shown = json.loads(out)
    assert [row["defence"] for row in shown["rows"]] == ["undefended", "DiffPure", "GDMP", "ours", "the guide alone"]
    assert shown["self_test"]["passed"]
    report = (tmp_path / "report.html").read_text()
    assert report.count("data:image/png") >= 2 * 3 and "<script" not in report


def test_the_table_for_people_says_how_many_images_and_what_it_means(sixteen_images, tmp_path, command):
    code, out, err = command("demo", "--report", tmp_path / "report.html", *LIGHT)
    assert code == 0, err
    assert "n = 16" in out and "n = 2" in out and "the guide alone" in out and "gradient self-test passed" in out
    assert json.loads(err.splitlines()[-1])["stage"] == "done"


@pytest.fixture
def handed_on(monkeypatch):
    """What the verb gave to the demonstration, in place of it; `verdict` is the self-test's."""
    seen = {"verdict": True}

    def shown(purifier, classifier, images, labels, budget, *, training_images, on_stage):
        seen.update(purifier=purifier, images=images, labels=labels, budget=budget, training_images=training_images)
        on_stage("gradient self-test")
        rows = [Row("ours", {"standard": wilson([1, 0, 1])}, 12.0)]
        return demo.Demo(rows, [], {"passed": seen["verdict"]}, budget, 61.24)

    monkeypatch.setattr(demo, "run_demo", shown)
    return seen


@pytest.mark.parametrize(("passed", "code"), [(True, 0), (False, 4)])
def test_a_failed_self_test_is_code_4_and_said(passed, code, handed_on, tmp_path, command):
    handed_on["verdict"] = passed
    ended, out, _ = command("demo", "--report", tmp_path / "report.html")
    verdict = "passed" if passed else "FAILED: the adaptive column means nothing"
    assert ended == code and f"gradient self-test {verdict} · 61 s · contact sheet in {tmp_path / 'report.html'}" in out
    ended, out, _ = command("demo", "--report", tmp_path / "report.html", "--json")
    result = json.loads(out)
    assert ended == code and result["self_test"] == {"passed": passed} and result["seconds"] == 61.2
    assert result["report"] == str(tmp_path / "report.html") and result["rows"][0]["columns"]["standard"]["n"] == 3


def test_it_attacks_the_held_out_digits_and_calibrates_on_the_training_ones(handed_on, tmp_path, command):
    assert command("demo", "--report", tmp_path / "report.html", "--num-draws", 3, "--seed", 9)[0] == 0
    images, labels = digits("test")
    assert torch.equal(handed_on["images"], images) and torch.equal(handed_on["labels"], labels)
    assert torch.equal(handed_on["training_images"], digits("train")[0])
    assert handed_on["budget"] == DemoConfig(num_draws=3, seed=9)
    assert handed_on["purifier"].config == GuidedPurifier.from_pretrained("digits").config
    html = unescape((tmp_path / "report.html").read_text())
    assert "Demonstration on held-out digits" in html and "demo.num_draws" in html and "purifier.t_star" in html
    assert all(note in html for note in demo.NOTES)
