"""A model as RobustBench takes them, and a claim in the layout that its table reads."""

from __future__ import annotations

import json
import os
from pathlib import Path

import jinja2
import pytest
import torch

from purify_engine.integrations.robustbench import load_model, model_info, write_model_info
from tests.test_defended import classifier
from tests.test_purifier import images, purifier

PAPER = {"name": "A Title", "authors": "A. Author", "link": "https://example.org", "venue": "Venue 2026"}
SETTING = {"architecture": "Linear", "additional_data": False, "dataset": "cifar10", "eps": 8 / 255}
SCORES = {"clean_acc": 0.9312, "autoattack_acc": 0.61, "external": 0.5512, "evaluation": "is PGD-200 with 20 EOT draws"}


@pytest.fixture(scope="module")
def model():
    return load_model(purifier(scale=0.0), classifier().train(), num_draws=2)


@pytest.fixture(scope="module")
def info(model):
    return model_info(model, **PAPER, **SETTING, **SCORES)


def test_a_model_takes_images_to_logits_in_evaluation_mode(model):
    assert not [part for part in model.modules() if part.training]
    assert model(images()).shape == (5, 3)


def test_a_purifier_of_another_range_is_refused():
    with pytest.raises(ValueError, match=r"purifier must be one of image_range=\(0, 1\), got \(-1"):
        load_model(purifier(image_range=(-1, 1)), classifier())


def test_a_device_that_is_not_here_is_refused_in_one_line():
    with pytest.raises(ValueError, match="^device must be one that PyTorch .* finds here, got 'cuda:99'$"):
        load_model(purifier(), classifier(), device="cuda:99")


def test_a_classifier_is_loaded_by_the_name_of_its_folder(small_purifier):
    from purify_engine import GuidedPurifier

    loaded = load_model(GuidedPurifier.from_pretrained(small_purifier), small_purifier)
    assert loaded(torch.rand(1, 1, 8, 8)).shape == (1, 10)


def test_a_claim_has_the_fields_of_robustbench(info):
    percents = {"clean_acc": "93.12", "autoattack_acc": "61.0", "external": "55.12", "reported": "55.12"}
    assert {name: info[name] for name in percents} == percents
    assert info["eps"] == "8/255"
    assert info["number_forward_passes"] == 2 * (3 + 1)
    assert info["unreliable"] is True
    assert "3 steps from t*=100, 2 draws, vote by logits" in info["footnote"]
    assert "is PGD-200 with 20 EOT draws" in info["footnote"]


@pytest.mark.parametrize("eps, written", [(0.5, "0.5"), (4 / 255, "4/255"), (0.031, "0.031"), (1.0, "1")])
def test_budgets_are_written_as_the_table_writes_them(model, eps, written):
    assert model_info(model, **PAPER, **{**SETTING, "eps": eps}, **SCORES)["eps"] == written


@pytest.mark.parametrize(
    "change, message",
    [
        ({"clean_acc": 93.1}, r"clean_acc must be in \[0, 1\], got 93.1"),
        ({"external": 0.7}, "external must be at most autoattack_acc=0.61, got 0.7"),
        ({"eps": 0.0}, "eps must be above 0, got 0.0"),
        ({"dataset": "mnist"}, "dataset must be one of cifar10, cifar100, imagenet, got 'mnist'"),
    ],
    ids=str,
)
def test_an_impossible_claim_is_refused(model, change, message):
    with pytest.raises(ValueError, match=message):
        model_info(model, **PAPER, **{**SETTING, **SCORES, **change})


def test_a_claim_stands_where_robustbench_looks_for_it(info, tmp_path):
    path = write_model_info(info, "Linf", "Author2026Title", tmp_path)
    assert path == tmp_path / "cifar10" / "Linf" / "Author2026Title.json"
    assert json.loads(path.read_text()) == info
    with pytest.raises(ValueError, match="model_name must be <Name><Year><FirstWordOfTheTitle>, got 'ours'"):
        write_model_info(info, "Linf", "ours", tmp_path)
    with pytest.raises(ValueError, match="threat_model must be one of Linf, L2, got 'linf'"):
        write_model_info(info, "linf", "Author2026Title", tmp_path)


@pytest.mark.integration
def test_robustbenchs_own_table_shows_the_claim_beside_its_models(info, tell):
    if not os.environ.get("ROBUSTBENCH"):
        tell("RobustBench's table: NOT RUN, ROBUSTBENCH=<folder of its sources> was not given")
        pytest.skip("RobustBench is on no package index: ROBUSTBENCH=<folder of its sources>")
    sources = Path(os.environ["ROBUSTBENCH"])
    others = [json.loads(path.read_text()) for path in sorted((sources / "model_info" / "cifar10" / "Linf").glob("*.json"))]
    known = set().union(*(other.keys() for other in others))
    assert set(info) <= known
    assert {type(info[field]) for field in info} <= {type(other[field]) for other in others for field in other}
    loader = jinja2.FileSystemLoader(sources / "robustbench" / "leaderboard")
    environment = jinja2.Environment(loader=loader, autoescape=jinja2.select_autoescape(["html", "xml"]))  # as RobustBench's own
    template = environment.get_template("leaderboard.html.j2")
    ranked = sorted([*others, info], key=lambda other: float(other.get("external", other["autoattack_acc"])), reverse=True)
    table = template.render(threat_model="Linf", dataset="cifar10", models=ranked, acc_field="autoattack_acc")
    rows = [row for row in table.split("<tr>") if "A Title" in row]
    assert len(rows) == 1
    assert all(shown in rows[0] for shown in ("93.12%", "61.0%", "55.12%", "Venue 2026", "&#9745;"))
    tell(f"RobustBench's table: its own template and {len(others)} claims, ran")
