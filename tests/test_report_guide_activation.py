"""The table of ReLU and SiLU guides: means over trainings, intervals over images, and what is masked."""

import json

import pytest

from bench.report.figures import FIGURES


def line(activation, form, seed, exact, other, clean=0.9, gap=0.5):
    return {
        "activation": activation, "form": form, "seed": seed, "n": len(exact), "guide": {"n": 360, "clean": clean, "robust": 0.8},
        "apart": {"1e-06": 1e-9, "1e-02": gap}, "scores": {"standard": [1.0] * len(exact), "exact": exact, "BPDA": other},
    }  # fmt: skip


@pytest.fixture
def rows(tmp_path):
    """The cells of every row, by the row's name, of the lines that are given."""

    def read(*lines):
        (tmp_path / "guide_activation.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
        table = FIGURES["guide-activation"](tmp_path).splitlines()
        cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in table]
        return {name: values for name, *values in cells}

    return read


def test_columns_are_forms_and_activations_and_cells_are_means_over_trainings(rows):
    twenty = [1.0] * 10 + [0.0] * 10
    found = rows(
        line("silu", "features", 0, twenty, [1.0] * 20), line("relu", "features", 0, twenty, [1.0] * 20, clean=0.8, gap=0.25),
        line("relu", "features", 1, [0.0] * 20, [1.0] * 20, clean=0.9, gap=0.75),
    )  # fmt: skip
    assert found[""] == ["ReLU, guiding by features", "SiLU, guiding by features"]
    assert found["trainings"] == ["2", "1"]
    assert [cell.split()[0] for cell in found["the guide alone, 360 digits: standard"]] == ["85.0", "90.0"]
    (differences,) = (name for name in found if "±0.01" in name)
    assert found[differences] == ["0.5 (0.25–0.75)", "0.5"]
    assert [cell.split()[0] for cell in found["PGD through the exact gradient"]] == ["25.0", "50.0"]


def test_the_exact_gradient_is_masked_where_another_attack_beats_it_beyond_the_paired_interval(rows):
    right, half = [1.0] * 20, [1.0] * 10 + [0.0] * 10
    found = rows(line("relu", "features", 0, right, half), line("silu", "features", 0, half, right))
    assert [cell.endswith("masked") for cell in found["PGD through the exact gradient"]] == [True, False]
    above = found["exact above the lowest other, points (paired 95 % interval)"]
    assert [cell.split()[0] for cell in above] == ["+50.0", "-50.0"]


def test_without_results_the_command_that_writes_them_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="python -m bench guide-activation"):
        FIGURES["guide-activation"](tmp_path)
