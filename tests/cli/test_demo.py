import json

import pytest

from purify_engine.evaluation import demo

LIGHT = ["--transfer-steps", 2, "--num-adaptive", 2, "--adaptive-steps", 1, "--num-eot", 1, "--num-draws", 1, "--num-exhibits", 2]


@pytest.fixture(autouse=True)
def sixteen_images(monkeypatch):
    """The demonstration on sixteen digits instead of 360."""
    whole = demo.run_demo

    def part(purifier, classifier, images, labels, *args, **kwargs):
        return whole(purifier, classifier, images[:16], labels[:16], *args, **kwargs)

    monkeypatch.setattr(demo, "run_demo", part)


def test_the_demonstration_compares_five_defences_and_writes_a_report(tmp_path, command):
    code, out, err = command("demo", "--report", tmp_path / "report.html", "--json", *LIGHT)
    assert code == 0, err
    shown = json.loads(out)
    assert [row["defence"] for row in shown["rows"]] == ["undefended", "DiffPure", "GDMP", "ours", "the guide alone"]
    assert shown["self_test"]["passed"]
    report = (tmp_path / "report.html").read_text()
    assert report.count("data:image/png") >= 2 * 3 and "<script" not in report


def test_the_table_for_people_says_how_many_images_and_what_it_means(tmp_path, command):
    code, out, err = command("demo", "--report", tmp_path / "report.html", *LIGHT)
    assert code == 0, err
    assert "n = 16" in out and "n = 2" in out and "the guide alone" in out and "gradient self-test passed" in out
    assert json.loads(err.splitlines()[-1])["stage"] == "done"
