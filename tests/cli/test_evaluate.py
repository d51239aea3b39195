import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from purify_engine.evaluation import protocol, row_self_test, sanity

COMMITTED = Path(__file__).parent.parent.parent / "bench" / "results" / "digits.jsonl"

FRESH = ("one draw", "worst of 10", "majority of 4")
LIGHT = ["--num-steps", 2, "--num-eot", 1, "--refine-steps", 0, "--num-draws", 2, "--fresh-draws", 2, "--fresh-seeds", 2]


@pytest.fixture
def sound_gradient(monkeypatch):
    """With random weights the self-test may pass or not; what becomes of its verdict is tested in test_evaluate_wiring.py."""
    monkeypatch.setattr(row_self_test, "row_self_tests", lambda rows, images, labels, **how: {"passed": True})


@pytest.fixture
def labelled(tmp_path):
    images = np.random.RandomState(0).rand(4, 1, 8, 8).astype(np.float32)
    np.savez(tmp_path / "in.npz", images=images, labels=np.arange(4))
    return tmp_path / "in.npz"


def test_chosen_attacks_on_chosen_defences(sound_gradient, labelled, tmp_path, command, small_purifier):
    where = [labelled, "--purifier", small_purifier, "--calibration", labelled, "--output", tmp_path / "cells.jsonl"]
    chosen = ["--defences", "undefended", "--defences", "ours", "--attacks", "standard", "--attacks", "exact"]
    code, out, err = command("evaluate", *where, *chosen, *LIGHT, "--report", tmp_path / "report.html", "--json")
    assert code == 0, err
    rows = {row["defence"]: row["columns"] for row in json.loads(out)["rows"]}
    assert rows.keys() == {"undefended", "ours"} and rows["ours"]["exact"]["n"] == 4
    lines = [json.loads(line) for line in (tmp_path / "cells.jsonl").read_text().splitlines()]
    assert sum("scores" in line for line in lines) == 4 == sum("winners" in line for line in lines)  # and each scored afresh
    fresh = {row["defence"]: row["columns"] for row in json.loads(out)["fresh"]["rows"]}
    assert fresh["ours"].keys() == {f"{one}: {how}" for one in ("standard", "exact") for how in FRESH}
    facts = {fact["defence"]: fact for fact in json.loads(out)["facts"]}
    assert facts["ours"]["calls"]["unet"] > 0 and 0 <= facts["ours"]["agreement_attacked"] <= 1
    assert (facts["ours"]["images"], facts["ours"]["attacks"], facts["undefended"]["agreement_clean"]) == (4, 1, None)
    assert "<html" in (tmp_path / "report.html").read_text()


def test_finished_cells_are_found_again(sound_gradient, labelled, tmp_path, command, small_purifier):
    words = [labelled, "--purifier", small_purifier, "--calibration", labelled, "--output", tmp_path / "cells.jsonl"]
    words += ["--defences", "DiffPure", "--attacks", "standard", *LIGHT]
    command("evaluate", *words)
    once = (tmp_path / "cells.jsonl").read_text()
    command("evaluate", *words)
    assert (tmp_path / "cells.jsonl").read_text() == once


def test_the_committed_evaluation_of_the_digits_is_read_as_it_was_made(tmp_path, command):
    shutil.copy(COMMITTED, tmp_path / "digits.jsonl")
    code, _, err = command("report", tmp_path / "digits.jsonl")
    assert code == 0, err
    told = json.loads((tmp_path / "digits.figures.json").read_text(encoding="utf-8"))
    rows = {row["defence"]: row["columns"] for row in told["rows"]}
    cells = protocol.read_cells(COMMITTED)
    for cell in cells:
        assert rows[cell.defence][cell.attack]["value"] == pytest.approx(cell.accuracy, abs=1e-12)
    assert sum(map(len, rows.values())) == len(cells) + 2 * len(rows)  # and two minima for each defence
    assert {fact["defence"]: fact["images"] for fact in told["facts"]} == dict.fromkeys(rows, 360)


def test_attacks_are_transferred_from_the_classifiers_named(sound_gradient, labelled, tmp_path, command, small_purifier):
    words = [labelled, "--purifier", small_purifier, "--output", tmp_path / "cells.jsonl", "--defences", "undefended", *LIGHT]
    words += ["--attacks", "transfer from others", "--transfer-from", "digits", "--transfer-from", small_purifier]
    code, out, err = command("evaluate", *words, "--json")
    assert code == 0, err
    (row,) = json.loads(out)["rows"]
    assert set(row["columns"]) == {"transfer from others"}


@pytest.mark.parametrize(("passed", "expected", "says"), [(True, 0, "holds"), (False, 4, "FAILS")])
def test_an_unsound_attack_fails_the_command(
    passed, expected, says, sound_gradient, labelled, command, small_purifier, monkeypatch
):
    def checked(cells):
        accuracies = {cell.attack: cell.accuracy for cell in cells}
        return [sanity.SanityCheck("the attack is sound", passed, accuracies, len(cells[0].scores))]

    monkeypatch.setattr(sanity, "sanity_checks", checked)
    output = labelled.with_name("cells.jsonl")
    words = [labelled, "--purifier", small_purifier, "--output", output, "--defences", "undefended", "--attacks", "standard"]
    code, out, err = command("evaluate", *words, *LIGHT, "--sanity")
    assert code == expected, err
    assert f"sanity: the attack is sound: {says} (exact " in out and "8 times the radius" in out
    assert {cell.attack for cell in protocol.read_cells(output)} == {"standard"}
    assert len(protocol.read_cells(labelled.with_name("cells.sanity.jsonl"))) == 6


@pytest.mark.parametrize(("norm", "gradient"), [("l2", "bpda"), ("linf", "surrogate")])
def test_an_attack_of_ones_own(norm, gradient, sound_gradient, labelled, tmp_path, command, small_purifier):
    words = [labelled, "--purifier", small_purifier, "--calibration", labelled, "--output", tmp_path / "cells.jsonl"]
    words += ["--defences", "ours", "--attack.norm", norm, "--attack.gradient", gradient, *LIGHT, "--limit", 2]
    if norm == "l2":  # the guide was trained for a radius in linf
        code, out, err = command("evaluate", *words)
        assert code == 2 and "attack.epsilon must be given (--attack.epsilon)" in err and err.count("\n") == 1
    code, out, err = command("evaluate", *words, "--attack.epsilon", 0.2)
    assert code == 0, err
    cells = [json.loads(line) for line in (tmp_path / "cells.jsonl").read_text().splitlines()]
    attack = cells[1]["config"]["attack"]
    assert (attack["norm"], attack["gradient"], attack["num_steps"], len(cells[1]["scores"])) == (norm, gradient, 2, 2)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--attacks", "magic"], "attacks must be of standard, "),
        (["--defences", "hope"], "defences must be of undefended, DiffPure, GDMP, ours"),
        (["--limit", 0], "limit must be at least 1, got 0"),
        (["--workers", 0], "workers must be at least 1, got 0"),
        (["--attacks", "transfer from others"], "transfer_from must be given, a classifier or more, for transfer from others"),
        (["--transfer-from", "nowhere"], "nowhere"),
        (["--sanity", "--seconds", 9], "sanity must be left out where seconds are given"),
        (["--attack.kind", "square", "--attack.norm", "l2"], "norm must be one of linf for kind='square'"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_impossible_choices_are_one_line(words, says, labelled, command, small_purifier):
    code, _, err = command("evaluate", labelled, "--purifier", small_purifier, "--calibration", labelled, *words)
    assert code == 2 and says in err and err.count("\n") == 1
