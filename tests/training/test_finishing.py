"""Which of several averages is saved, and what the card and the files beside it say of a training."""

import json
import re
from xml.etree import ElementTree

import pytest
import torch

from purify_engine.config import ClassifierTraining, DiffusionTraining, Perturbation, TradesTraining
from purify_engine.models import load_safetensors
from purify_engine.training import classifier, diffusion, trades
from purify_engine.training.finishing import Comparison, chosen
from purify_engine.training.loop import MovingAverage
from purify_engine.training.outcome import POINTS, Outcome, curve
from tests.training.test_loop_state import loop_in


def averaging(folder, worth, **changes):
    """A loop whose last weights are 0 and whose averages are 1, 2, ...; `worth` gives each of these a figure."""
    loop = loop_in(folder, average=False, **changes)
    named = [loop.config.ema_decay] * (loop.config.ema_decay is not None)
    loop.averages = {str(decay): MovingAverage(loop.model, decay) for decay in (*named, *loop.config.other_ema_decays)}
    for number, model in enumerate([loop.model, *(each.module for each in loop.averages.values())]):
        torch.nn.init.constant_(model.weight.detach(), number)
    return loop, lambda model: worth[int(model.weight[0])]


@pytest.mark.parametrize(
    ("ema_decay", "higher", "worth", "best"),
    [(0.9, True, [9, 0.2, 0.5, 0.3], 2), (0.9, False, [0, 0.2, 0.5, 0.3], 1), (None, True, [0.6, 0.2, 0.5], 0)],
)
def test_the_best_of_several_is_saved_and_all_are_told(ema_decay, higher, worth, best, tmp_path):
    loop, measure = averaging(tmp_path, worth, ema_decay=ema_decay, other_ema_decays=(0.5, 0.7))
    model, figures = chosen(loop, Comparison("accuracy", measure, higher))
    assert model.weight.tolist() == [best] * 3
    named = "the last weights" if ema_decay is None else "the average over 0.9"
    names = [named, "the average over 0.5", "the average over 0.7"]
    values = worth[:3] if ema_decay is None else worth[1:]
    saved = names[best if ema_decay is None else best - 1]
    assert figures == {
        f"held-out: accuracy, {name}{', which is saved' * (name == saved)}": value
        for name, value in zip(names, values, strict=True)
    }


@pytest.mark.parametrize(("ema_decay", "first"), [(None, 0), (0.9, 1)])
def test_without_held_out_images_or_other_averages_the_named_one_is_saved(ema_decay, first, tmp_path):
    for others, compares in (((0.5,), False), ((), True)):
        loop, measure = averaging(tmp_path, [0, 0, 0, 1], ema_decay=ema_decay, other_ema_decays=others)
        model, figures = chosen(loop, Comparison("accuracy", measure) if compares else None)
        assert model.weight.tolist() == [first] * 3 and figures == {}


@pytest.mark.parametrize("part", ["unet", "guide", "classifier"])
def test_every_trainer_measures_and_saves_one_of_its_averages(part, tiny_unet, tiny_classifier, stripes, tmp_path):
    images, labels = stripes
    common = {"steps": 4, "batch_size": 8, "shift": 0, "report_every": 1, "ema_decay": 0.5, "other_ema_decays": (0.0,)}
    attack = Perturbation(epsilon=0.1, num_steps=1)
    if part == "unet":
        config = DiffusionTraining(t_max=4, warmup_steps=0, **common)
        model = diffusion.train_diffusion(images, tiny_unet, config, tmp_path, held_out=images[:5])
    elif part == "guide":
        config = TradesTraining(attack=attack, **common)
        model = trades.train_trades(images, labels, tiny_classifier, config, tmp_path, held_out=(images, labels))
    else:
        config = ClassifierTraining(attack=attack, **common)
        model = classifier.train_classifier(images, labels, tiny_classifier, config, tmp_path, held_out=(images, labels))
    figure = {"unet": "mean RMSE of the denoised images", "guide": "robust accuracy under the training's attack"}
    said = re.findall(rf"held-out: {figure.get(part, 'standard accuracy')}, the average over (0.\d)(, which is saved)? \|",
                      (tmp_path / f"{part}.md").read_text())  # fmt: skip
    assert [decay for decay, _ in said] == ["0.5", "0.0"] and sum(map(bool, (saved for _, saved in said))) == 1
    stored = load_safetensors(type(model)(tiny_unet if part == "unet" else tiny_classifier), tmp_path / f"{part}.safetensors")
    assert all(torch.equal(value, stored.state_dict()[name]) for name, value in model.state_dict().items())
    assert not model.training and all(parameter.requires_grad for parameter in model.parameters())
    told = json.loads((tmp_path / f"{part}.training.json").read_text())
    assert [point["step"] for point in told["history"]] == [1, 2, 3, 4] and told["steps"] == 4 and told["config"]["steps"] == 4
    assert len([name for name in told["figures"] if figure.get(part, "standard accuracy") in name]) >= 2
    assert told["weights_sha256"] in (tmp_path / f"{part}.md").read_text() and len(told["weights_sha256"]) == 64
    assert "## Course\n4 steps, in " in (tmp_path / f"{part}.md").read_text()
    assert f"![Loss by step]({part}.svg)" in (tmp_path / f"{part}.md").read_text() and (tmp_path / f"{part}.svg").exists()


def points_of(svg):
    root = ElementTree.fromstring(svg)
    (path,) = root.iter("{http://www.w3.org/2000/svg}path")
    return [tuple(map(float, pair.split(","))) for pair in path.get("d")[1:].split(" L")], "".join(root.itertext())


def history(losses):
    return [{"step": 10 * (k + 1), "loss": loss, "learning_rate": 0.1, "seconds": 1.0} for k, loss in enumerate(losses)]


def test_a_curve_falls_where_the_loss_does_and_is_logarithmic_where_it_can_be():
    points, text = points_of(curve(history([100.0, 10.0, 1.0]), "A <title>"))
    (x0, y0), (x1, y1), (x2, y2) = points
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.15) and y1 - y0 == pytest.approx(y2 - y1, abs=0.15) and y0 < y1 < y2
    assert "A <title>" in text and "logarithmic" in text and "30" in text
    points, text = points_of(curve(history([1.0, 0.0, -1.0]), "b"))
    assert points[0][1] < points[1][1] < points[2][1] and "logarithmic" not in text
    assert len({y for _, y in points_of(curve(history([0.5, 0.5]), "flat"))[0]}) == 1
    assert curve(history([1.0]), "one") is None and curve([], "none") is None


def test_a_long_history_is_thinned_and_keeps_its_last_report():
    outcome = Outcome()
    for step in range(1, 3 * POINTS + 1):
        outcome.note({"step": step, "loss": 1.0})
        assert len(outcome.history) <= POINTS and outcome.history[-1]["step"] == step
    steps = [point["step"] for point in outcome.history]
    assert steps == sorted({*steps}) and len(steps) > POINTS // 2
