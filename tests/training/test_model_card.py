import re
from dataclasses import replace

from purify_engine.config import ClassifierTraining
from purify_engine.training.classifier import train_classifier

CONFIG = ClassifierTraining(steps=2, batch_size=8, seed=7, shift=0)
PARTS = ["Data", "Figures", "Network", "Training", "Intended use", "Limits"]


def card(tiny_classifier, stripes, folder, config=CONFIG):
    reports = []
    train_classifier(*stripes, tiny_classifier, config, folder, held_out=stripes, data="Stripes, drawn.", progress=reports.append)
    return (folder / "classifier.md").read_text(), reports[-1]["figures"]


def test_a_card_says_what_the_network_is_and_what_it_learned_from(tiny_classifier, stripes, tmp_path):
    text, _ = card(tiny_classifier, stripes, tmp_path)
    assert text.startswith("# Plain classifier\n")
    assert [title for part in PARTS for title in re.findall(rf"^## ({part})", text, re.M)] == PARTS
    assert "Stripes, drawn." in text and "40 images of shape 1x4x4" in text and "seed 7" in text


def test_every_figure_and_every_setting_is_in_the_card(tiny_classifier, stripes, tmp_path):
    text, figures = card(tiny_classifier, stripes, tmp_path)
    rows = dict(re.findall(r"^\| (.+?) \| (.+?) \|$", text, re.M))
    for name, value in figures.items():
        assert float(rows[name]) == float(f"{value:.4g}")
    assert rows["architecture"] == "cifar_resnet" and rows["momentum"] == "0.9" and rows["attack.norm"] == "linf"


def test_a_card_follows_the_configuration(tiny_classifier, stripes, tmp_path):
    text, _ = card(tiny_classifier, stripes, tmp_path, replace(CONFIG, seed=8))
    assert "seed 8" in text and "seed 7" not in text
