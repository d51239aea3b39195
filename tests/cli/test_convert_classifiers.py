"""Published classifiers through `purify-engine convert`: what weights do not tell is stated or refused, and said."""

from __future__ import annotations

import shutil

import pytest
import torch
import torch.nn.functional as F

from purify_engine import load_classifier
from purify_engine.testing.published import preact_resnet, trades
from tests.models.checkpoints import plain_classifiers as plain

WRN = trades.wide_resnet(10, 1, 10, sub_block1=True)
IMAGES = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_a_classifier_of_the_zoo_needs_nothing_but_its_name(command, tmp_path):
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in WRN.items()}}, tmp_path / "Carmon2019Unlabeled.pt")
    code, out, err = command("convert", tmp_path / "Carmon2019Unlabeled.pt", tmp_path / "out")
    assert code == 0, err
    assert "normalised as Carmon2019Unlabeled is in RobustBench's zoo, by the file's name" in out
    expected = plain.trades_wide(WRN, IMAGES, F.relu)
    torch.testing.assert_close(load_classifier(tmp_path / "out")(IMAGES), expected, rtol=1e-4, atol=1e-4)


def test_any_other_is_refused_until_its_normalisation_is_stated(command, tmp_path):
    torch.save(WRN, tmp_path / "mine.pt")
    code, _, err = command("convert", tmp_path / "mine.pt", tmp_path / "out")
    assert code == 2 and err.count("\n") == 1 and "state normalisation (none, half, cifar10, cifar100, imagenet)" in err
    code, out, err = command("convert", tmp_path / "mine.pt", tmp_path / "out", "--classifier-network.normalisation", "half")
    assert code == 0 and "activation relu" in out, err
    found = load_classifier(tmp_path / "out")
    assert found.config.mean == found.config.std == (0.5, 0.5, 0.5)
    assert torch.equal(found(IMAGES), load_classifier(tmp_path / "mine.pt", normalisation="half")(IMAGES))


def test_what_shortcuts_read_is_stated_too(command, tmp_path):
    torch.save({"net": preact_resnet.state_dict((1, 1, 1, 1), 4)}, tmp_path / "ckpt.pth")
    stated = ("--classifier-network.normalisation", "none")
    code, _, err = command("convert", tmp_path / "ckpt.pth", tmp_path / "out", *stated)
    assert code == 2 and "shortcut_reads must be stated" in err
    stated += ("--classifier-network.shortcut-reads", "input")
    code, _, err = command("convert", tmp_path / "ckpt.pth", tmp_path / "out", *stated)
    assert code == 0 and load_classifier(tmp_path / "out").config.shortcut_reads == "input", err


def test_what_is_kept_in_the_cache_is_kept_by_what_was_stated_and_by_name(tmp_path):
    torch.save(WRN, tmp_path / "Standard.pt")
    shutil.copy(tmp_path / "Standard.pt", tmp_path / "Hendrycks2019Using.pt")
    means = {name: load_classifier(tmp_path / f"{name}.pt").config.mean for name in ("Standard", "Hendrycks2019Using")}
    assert means == {"Standard": (0.0, 0.0, 0.0), "Hendrycks2019Using": (0.5, 0.5, 0.5)}
    assert load_classifier(tmp_path / "Standard.pt", normalisation="half").config.mean == (0.5, 0.5, 0.5)
    assert load_classifier(tmp_path / "Standard.pt").config.mean == (0.0, 0.0, 0.0)
