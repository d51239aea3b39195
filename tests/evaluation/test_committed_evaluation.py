"""The committed evaluation of the digits: found again on every machine, and only where it is the same evaluation."""

import json
import shutil
from pathlib import Path

import pytest

from purify_engine.config import AttackConfig, EvaluationConfig
from purify_engine.data import digits
from purify_engine.evaluation import protocol
from purify_engine.evaluation.defences import CALIBRATED, GDMP, standard_defences
from purify_engine.presets import load_classifier
from purify_engine.purifier import GuidedPurifier

COMMITTED = Path(__file__).parent.parent.parent / "bench" / "results" / "digits.jsonl"
CELLS = protocol.read_cells(COMMITTED)
SCALED = {cell.defence for cell in CELLS} & set(CALIBRATED)  # the rows that are calibrated on training images


def committed_scale(defence):
    return next(cell.config["defence"]["purifier"]["guidance"]["scale"] for cell in CELLS if cell.defence == defence)


@pytest.fixture(scope="module")
def held_out():
    return digits("test")


@pytest.fixture(scope="module")
def defences():
    """The rows of the evaluation, calibrated to the committed scales times `factor`."""
    purifier, classifier = GuidedPurifier.from_pretrained("digits"), load_classifier("digits")
    scales = {"pixel" if name == GDMP else "adversarial": committed_scale(name) for name in SCALED}

    training = digits("train")[0]

    def rows(factor):
        with pytest.MonkeyPatch.context() as patch:
            calibrate = lambda purifier, images, ratio: factor * scales[purifier.config.guidance.kind]  # noqa: E731
            patch.setattr(GuidedPurifier, "calibrate", calibrate)
            names = {cell.defence for cell in CELLS}
            return standard_defences(purifier, classifier, training, names)

    return rows


@pytest.fixture
def computed(monkeypatch, tmp_path):
    """(defence, attack) of every cell that an evaluation computes, in place of computing it; the results file is a copy."""
    computed = []

    def compute(defence, wanted, images, labels, config, mark):
        computed.append((defence.name, wanted.name))
        return protocol.Cell(defence.name, wanted.name, wanted.norm, (1.0,), (1.0,), 0.0, mark, {})

    monkeypatch.setattr(protocol, "run_cell", compute)
    shutil.copy(COMMITTED, tmp_path / "digits.jsonl")
    return computed


def place(cell):
    return cell.defence, cell.attack


def evaluate(defences, held_out, results, config=None):
    """Every row by the attacks that the committed file has of it."""
    cells = []
    for row in defences:
        of_row = [cell for cell in CELLS if cell.defence == row.name]
        attacks = [AttackConfig(**cell.config["attack"]) for cell in of_row]
        cells += protocol.evaluate([row], *held_out, config, attacks=attacks, results=results)
    return cells


@pytest.mark.parametrize("factor", [1, 1 + 1e-6, 1 - 1e-6])
def test_calibration_that_rounds_otherwise_recomputes_nothing(factor, defences, held_out, computed, tmp_path):
    cells = evaluate(defences(factor), held_out, tmp_path / "digits.jsonl")
    assert computed == [] and sorted(cells, key=place) == sorted(CELLS, key=place)
    assert (tmp_path / "digits.jsonl").read_bytes() == COMMITTED.read_bytes()


@pytest.mark.parametrize("factor", [1 + 1e-4, 1 - 1e-4])
def test_another_scale_recomputes_what_it_guides(factor, defences, held_out, computed, tmp_path):
    evaluate(defences(factor), held_out, tmp_path / "digits.jsonl")
    assert set(computed) == {place(cell) for cell in CELLS if cell.defence in SCALED} and len(SCALED) == 2


def test_one_pixel_or_one_setting_recomputes_everything(defences, held_out, computed, tmp_path):
    images, labels = held_out
    other = images.clone()
    other[-1, 0, -1, -1] = 0.5
    evaluate(defences(1 + 1e-6), (other, labels), tmp_path / "digits.jsonl")
    assert len(computed) == len(CELLS)
    evaluate(defences(1 + 1e-6), held_out, tmp_path / "digits.jsonl", EvaluationConfig(num_draws=11))
    assert len(computed) == 2 * len(CELLS)


@pytest.mark.parametrize("network", ["classifier", "guide", "unet"])
def test_one_weight_recomputes_everything_that_the_network_takes_part_in(network, defences, held_out, computed, tmp_path):
    rows = defences(1 + 1e-6)
    ours = next(row for row in rows if row.name == "ours")
    changed = {"classifier": ours.classifier, "guide": ours.guide, "unet": ours.purifier.denoiser.unet}[network]
    weight = next(changed.parameters()).detach().view(-1)
    kept = weight[-1].clone()
    try:
        weight[-1] += 1
        evaluate(rows, held_out, tmp_path / "digits.jsonl")
    finally:
        weight[-1] = kept
    unguided = {"classifier": set(), "guide": {"undefended"}, "unet": {"undefended", "the guide alone"}}[network]
    assert {name for name, _ in computed} == {row.name for row in rows} - unguided


def test_a_line_whose_fingerprint_does_not_fit_its_settings_is_not_found(defences, held_out, computed, tmp_path):
    """Such a line comes from other images or weights, or was changed by hand."""
    lines = [json.loads(line) for line in COMMITTED.read_text().splitlines()]
    for line in lines:
        line["fingerprint"] = line["fingerprint"][::-1]
    (tmp_path / "digits.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    evaluate(defences(1 + 1e-6), held_out, tmp_path / "digits.jsonl")
    assert len(computed) == len(CELLS)
