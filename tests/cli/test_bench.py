"""`purify-engine bench` as people type it."""

import json

import pytest

from purify_engine.benchmark import throughput
from purify_engine.benchmark.harness import interleaved
from purify_engine.cli.bench import Meter


def test_the_table_has_a_row_for_every_batch_and_variant(command, small_purifier, monkeypatch):
    monkeypatch.setattr(throughput, "interleaved", lambda *words, **limits: interleaved(*words, **{**limits, "seconds": 0}))
    code, out, err = command("bench", "--purifier", small_purifier, "--batch", 1, "--batch", 3)
    assert code == 0
    told = json.loads(err.splitlines()[-1])
    assert (told["job"], told["done"], told["total"]) == ("bench", 6, 6)
    rows = [line.split("│")[1:3] for line in out.splitlines() if line.startswith("│")]
    expected = [[str(batch), name] for batch in (1, 3) for name in ("engine", "eager fp32", "naive loop")]
    assert [[cell.strip() for cell in row] for row in rows] == expected
    assert "engine: graph" in out


def test_json_is_one_line_with_everything_in_it(command, small_purifier):
    code, out, _ = command("bench", "--purifier", small_purifier, "--batch", 2, "--seconds", 0.5, "--json")
    result = json.loads(out)
    assert code == 0 and out.count("\n") == 1
    assert result["steps"] == 3 and result["report"] is None and result["machine"]["device"] == "cpu"
    engine, eager, _ = result["points"]
    assert engine["speed_up"] == pytest.approx(eager["median"] / engine["median"]) and engine["p99"] >= engine["median"]


def test_the_precision_that_is_asked_for_is_measured_and_said(command, small_purifier):
    words = ["--purifier", small_purifier, "--batch", 1, "--seconds", 0.5, "--device", "cpu", "--precision"]
    assert json.loads(command("bench", *words, "fp16", "--json")[1])["precision"] == "fp16"
    assert "3 steps, bf16, on" in command("bench", *words, "bf16")[1]


def test_progress_names_the_batch_and_the_variant_just_measured(command, small_purifier, monkeypatch):
    updates = []
    monkeypatch.setattr(Meter, "update", lambda meter, done, total, **facts: updates.append((done, total, facts)))
    command("bench", "--purifier", small_purifier, "--batch", 2, "--seconds", 0.5, "--json")
    facts = [facts for _, _, facts in updates[:-1]]
    assert {fact["variant"] for fact in facts} == {"engine", "eager fp32", "naive loop"}
    assert all(fact["batch"] == 2 for fact in facts) and [done for done, _, _ in updates] == [1, 2, 3, 3]


def test_the_report_is_written(command, small_purifier, tmp_path):
    words = ["--purifier", small_purifier, "--batch", 1, "--seconds", 0.5, "--output", tmp_path / "speed.html"]
    code, out, _ = command("bench", *words)
    assert code == 0 and "<svg" in (tmp_path / "speed.html").read_text() and f"charts in {tmp_path / 'speed.html'}" in out


def test_a_published_architecture_has_random_weights(command, monkeypatch):
    from purify_engine.benchmark import networks

    monkeypatch.setitem(networks.NETWORKS, "ddpm-cifar10", networks.TOY_NETWORKS["toy-ddpm"])
    monkeypatch.setitem(networks.GUIDES, "resnet18", networks.TOY_GUIDE)
    code, out, _ = command("bench", "--purifier", "ddpm-cifar10", "--batch", 1, "--seconds", 0.5, "--json")
    result = json.loads(out)
    assert code == 0 and (result["purifier"], result["steps"]) == ("ddpm-cifar10", 10)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--batch", 0], "batch must be at least 1, got 0"),
        (["--seconds", 0], "seconds must be positive, got 0"),
        (["--purifier", "absent"], "got 'absent'"),
        (["--purifier", "ddpm-cifar10+hope"], "guided by one of resnet18, wrn-28-10"),
        (["--precision", "int4"], "Choose from"),
        (["--device", "nonsense"], "device must be one that PyTorch"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_impossible_requests_are_one_line(words, says, command):
    code, out, err = command("bench", *words)
    assert code == 2 and says in err and out == "" and err.count("\n") == 1
