"""Training and evaluation on a machine that is there for minutes: what they are told, and how they end."""

from __future__ import annotations

import pytest

from bench import gpu
from bench.core import commands, steps
from bench.core.steps import Step

GIVEN = ["--recipe", "cifar10", "--networks", "unet guide", "--data", "d", "--output", "o", "--seconds", "300"]
GIVEN += ["--purifier", "p", "--rest=--limit 8"]
LATE = "import time; time.sleep(60)"


def told(name, *, dry):
    ((step,),) = gpu.stages([name])
    return gpu.told(step, gpu.options().parse_args(GIVEN), dry=dry)


def test_they_are_told_what_the_command_line_says():
    train, evaluate, others = (told(name, dry=False) for name in ("train", "evaluate", "timings"))
    expected = ("--recipe", "cifar10", "--networks", "unet", "guide", "--data", "d", "--output", "o")
    assert train.words == ("bench", "train", *expected) and (train.seconds, train.rest) == (300, ())
    assert evaluate.words == ("bench", "evaluate", "--purifier", "p", "--data", "d", "--output", "o")
    assert evaluate.rest == ("--limit", "8") and others.words == ("bench", "ops")


def test_a_dry_run_is_of_toys_within_a_minute_whatever_the_command_line_says():
    for name in ("train", "evaluate"):
        step = told(name, dry=True)
        assert step.words == ("bench", name) and steps.limit(step, dry=True) <= 60 and step.rest == ()


def test_what_follows_all_options_stands_behind_two_dashes(tmp_path, monkeypatch):
    (tmp_path / "rest.py").write_text("import sys\nraise SystemExit(0 if sys.argv[-3:] == ['--', '--limit', '8'] else 1)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (outcome,) = steps.carried_out((Step("rest", ("rest",), 30, rest=("--limit", "8")),), tmp_path, dry=False)
    assert outcome.status == 0


@pytest.mark.parametrize(("ending", "status"), [("raise SystemExit(3)", 3), (LATE, None)], ids=["ends", "late"])
def test_a_command_of_the_package_is_followed_to_its_end_or_to_that_of_its_time(tmp_path, monkeypatch, ending, status):
    report = "import sys\nprint('{', flush=True)\nprint('{\"loss\": %d}' % len(sys.argv), flush=True)\n"
    (tmp_path / "purify_engine").mkdir()
    (tmp_path / "purify_engine" / "__main__.py").write_text(report + ending)
    monkeypatch.setattr(commands, "ROOT", tmp_path)
    said = []
    assert commands.followed(["train", "x"], 1.5, said.append) == status
    assert said == [{"loss": 3}]
