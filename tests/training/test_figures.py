"""What the trainers measure after training, and what the cards say of it."""

import hashlib
import re
from dataclasses import replace

import pytest
import torch
from torch import nn

from purify_engine.config import (
    ClassifierConfig,
    ClassifierTraining,
    DiffusionTraining,
    Perturbation,
    ScheduleConfig,
    TradesTraining,
    UNetConfig,
)
from purify_engine.reference.schedules import NoiseSchedule, make_schedule
from purify_engine.training import classifier, diffusion, trades
from purify_engine.training.classifier import classification_figures, momentum_sgd
from purify_engine.training.diffusion import denoising_error, noise_prediction_loss
from purify_engine.training.model_card import ModelCard, count_parameters, publish
from purify_engine.training.record import TrainingSet

SCHEDULE = make_schedule(ScheduleConfig())


class Brightness(nn.Module):
    """Class 1 where the first pixel exceeds one half; notes in which mode it was asked."""

    def __init__(self):
        super().__init__()
        self.modes = []

    def forward(self, x):
        self.modes.append(self.training)
        score = 20 * (x[:, 0, 0, 0] - 0.5)
        return torch.stack([-score, score], dim=1)


def pixels(values):
    return torch.tensor(values).view(-1, 1, 1, 1)


def test_both_accuracies_of_every_set_that_there_is():
    near, far = pixels([0.45, 0.55]), pixels([0.1, 0.9])
    labels, model = torch.tensor([0, 1]), Brightness()
    attack = Perturbation(epsilon=0.1, step_size=0.05, num_steps=3)
    figures = classification_figures(model, {"near": (near, labels), "none": None, "wrong": (far, 1 - labels)}, attack)
    assert figures == {
        "near: standard accuracy": 1,
        "near: robust accuracy (PGD-3, linf 0.1)": 0,
        "wrong: standard accuracy": 0,
        "wrong: robust accuracy (PGD-3, linf 0.1)": 0,
    }
    assert not any(model.modes) and not model.training


def test_figures_are_of_the_first_thousand_images():
    images, labels = pixels([0.9] * 1000 + [0.1] * 500), torch.ones(1500, dtype=torch.long)
    figures = classification_figures(Brightness(), {"a": (images, labels)}, Perturbation(epsilon=0.0, num_steps=1))
    assert set(figures.values()) == {1.0}
    right_from = pixels([0.1] * 999 + [0.9] * 501)
    figures = classification_figures(Brightness(), {"a": (right_from, labels)}, Perturbation(epsilon=0.0, num_steps=1))
    assert set(figures.values()) == {1 / 1000}


def test_the_optimiser_is_configured_as_asked():
    config = ClassifierTraining(learning_rate=0.3, momentum=0.6, weight_decay=0.02)
    group = momentum_sgd(nn.Linear(2, 2), config).param_groups[0]
    assert (group["lr"], group["momentum"], group["weight_decay"], group["nesterov"]) == (0.3, 0.6, 0.02, False)
    assert len(group["params"]) == 2


def test_a_guide_is_measured_by_four_times_the_steps_of_half_the_size_and_on_noisy_views():
    images, labels = pixels([0.3, 0.8]), torch.tensor([0, 1])
    config = TradesTraining(t_star=1, attack=Perturbation(epsilon=0.1, step_size=0.06, num_steps=5))
    asked = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trades, "classification_figures", lambda model, sets, attack: asked.append((sets, attack)) or {"a": 1.0})
        sets = {"training": (images, labels), "held-out": None}
        figures = trades._figures(Brightness(), sets, config, SCHEDULE)
        clean = trades._figures(Brightness(), sets, replace(config, t_star=0), SCHEDULE)
    assert asked[0] == (sets, Perturbation(epsilon=0.1, step_size=0.03, num_steps=20))
    assert figures == {"a": 1.0, "training: standard accuracy on noisy views": 1.0} and clean == {"a": 1.0}


def test_noisy_views_are_noisy_and_drawn_from_the_seed():
    images, labels = torch.full((400, 1, 1, 1), 0.55), torch.ones(400, dtype=torch.long)
    config = TradesTraining(t_star=1000, seed=3)
    before = torch.get_rng_state()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trades, "classification_figures", lambda *args: {})
        figures = [trades._figures(Brightness(), {"a": (images, labels)}, replace(config, seed=s), SCHEDULE) for s in (3, 3, 4)]
    assert torch.equal(torch.get_rng_state(), before)
    shares = [figure["a: standard accuracy on noisy views"] for figure in figures]
    assert shares[0] == shares[1] != shares[2] and 0.4 < shares[0] < 0.7


@pytest.mark.parametrize(
    ("t_max", "indices"), [(200, [49, 99, 149, 199]), (4, [0, 1, 2, 3]), (2, [0, 1]), (1, [0]), (1000, [249, 499, 749, 999])]
)
def test_denoising_is_measured_at_the_quarters_of_what_was_trained(t_max, indices, monkeypatch):
    asked = []
    monkeypatch.setattr(
        diffusion, "denoising_error", lambda model, images, schedule, index: asked.append((len(images), index)) or 0.5
    )
    figures = diffusion._figures(nn.Identity(), {"a": torch.zeros(1200, 1, 1, 1), "b": None}, SCHEDULE, t_max)
    assert asked == [(1000, index) for index in indices]
    assert figures == {f"a: RMSE of the denoised image at timestep {index}": 0.5 for index in indices}


class Told(nn.Module):
    """Notes the times it is told; the noise it predicts is `scale` times its input, the rest of its channels is out of place."""

    def __init__(self, channels=1, scale=1.0):
        super().__init__()
        self.channels, self.scale, self.times = channels, scale, []

    def forward(self, x, t):
        self.times.append(t)
        return torch.cat([self.scale * x, *[torch.full_like(x, 1e3)] * (self.channels - 1)], dim=1)


def test_a_learned_variance_takes_no_part_in_the_loss():
    images = torch.rand(16, 1, 2, 2)
    losses = []
    for channels in (1, 2):
        torch.manual_seed(0)
        losses.append(noise_prediction_loss(Told(channels), images, SCHEDULE, t_max=100))
    assert losses[0] == losses[1] < 10


def test_the_network_is_told_the_schedules_times_and_not_its_indices():
    schedule = NoiseSchedule(SCHEDULE.betas, 3.0 * torch.arange(1000) + 7)
    model = Told()
    denoising_error(model, torch.zeros(2, 1, 1, 1), schedule, index=5)
    assert model.times[0].tolist() == [22, 22]


def test_denoising_error_is_averaged_over_pixels_and_repeats_itself():
    images = torch.rand(50, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    before = torch.get_rng_state()
    first, again, other = (
        denoising_error(Told(scale=0.3), images, SCHEDULE, 300, **seed) for seed in ({}, {"seed": 0}, {"seed": 1})
    )
    assert first == again != other and torch.equal(torch.get_rng_state(), before)
    # E|estimate - x0|^2 with predicted noise 0.3 x_t: the estimate is x_t (1 - 0.3 s) / a, s^2 = 1 - a^2, of x_t = a x0 + s n.
    a = float(SCHEDULE.alphas_cumprod[300].sqrt())
    s = (1 - a**2) ** 0.5
    gain, x0 = (1 - 0.3 * s) / a, (2 * images - 1).double()
    expected = (((gain * a - 1) ** 2 * x0.square().mean() + (gain * s) ** 2) ** 0.5) / 2
    assert first == pytest.approx(float(expected), rel=0.15)  # 450 draws


def test_parameters_are_counted_by_their_numbers():
    assert count_parameters(nn.Sequential(nn.Linear(3, 5), nn.Conv2d(2, 4, 3), nn.BatchNorm1d(5))) == 20 + 76 + 10
    assert count_parameters(nn.Flatten()) == 0


CARD = ModelCard(
    name="guide",
    title="A title",
    what="What it does.",
    data=TrainingSet(source="Where the images are from.", images=12345, shape=(3, 8, 9), sha256="abc"),
    parameters=6789012,
    network=ClassifierConfig(depth=10, mean=(0.1, 0.2, 0.3)),
    config=ClassifierTraining(seed=11, learning_rate=0.123456, attack=Perturbation(norm="l2", epsilon=1 / 3)),
    figures={"accuracy | of a kind": 2 / 3, "loss": 1234567.0},
    use="What for.",
    limits="What not for.",
)


def test_a_card_in_full():
    text = CARD.render()
    lines = text.splitlines()
    assert lines[0] == "# A title" and text.endswith("What not for.\n") and "\n\n\n" not in text
    assert lines[2] == (
        "What it does. Weights: `guide.safetensors`, 6,789,012 parameters. "
        f"Written by `purify_engine.training` (PyTorch {torch.__version__})."
    )
    trained = "Trained on 12,345 images of shape 3x8x9; seed 11. SHA-256 of their pixels: `abc`."
    assert f"## Data\nWhere the images are from.\n\n{trained}\n" in text
    named = replace(CARD, class_names=("cat", "dog")).render()
    assert f"{trained} Classes, from 0: cat, dog.\n" in named
    figures = "| figure | value |\n| --- | --- |\n| accuracy \\| of a kind | 0.6667 |\n| loss | 1.235e+06 |\n"
    assert f"## Figures, measured after training\n{figures}" in text
    assert (
        "## Network: ClassifierConfig\n| field | value |\n" in text
        and "## Training: ClassifierTraining\n| field | value |\n" in text
    )
    assert "## Intended use\nWhat for.\n" in text and "## Limits\nWhat not for.\n" in text


def test_a_card_shows_every_field_also_nested_ones():
    rows = dict(re.findall(r"^\| (.+?) \| (.+?) \|$", CARD.render(), re.M))
    assert rows["learning_rate"] == "0.1235" and rows["attack.epsilon"] == "0.3333" and rows["attack.norm"] == "l2"
    assert rows["mean"] == str([0.1, 0.2, 0.3]) or rows["mean"] == str((0.1, 0.2, 0.3))
    fields = {*vars(CARD.network), *vars(CARD.config), *(f"attack.{name}" for name in vars(CARD.config.attack))} - {"attack"}
    assert fields <= set(rows) and "attack" not in rows


def test_publishing_writes_weights_and_card_and_then_drops_the_checkpoint(tmp_path, monkeypatch):
    checkpoint = tmp_path / "guide.checkpoint"
    checkpoint.touch()

    def full(*args):
        raise OSError("No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(tmp_path), "replace", full)
        with pytest.raises(OSError, match="No space left"):
            publish(nn.Linear(1, 1), CARD, tmp_path)
    assert checkpoint.exists(), "what could not be published can still be resumed"
    (tmp_path / "unet.checkpoint").touch()
    publish(nn.Linear(1, 1), CARD, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "guide.md", "guide.safetensors", "unet.checkpoint"]
    digest = hashlib.sha256((tmp_path / "guide.safetensors").read_bytes()).hexdigest()
    card = (tmp_path / "guide.md").read_text()
    assert card == CARD.render(sha256=digest) and f"SHA-256 of the weights: `{digest}`." in card
    publish(nn.Linear(1, 1), CARD, tmp_path)  # no checkpoint to drop is fine


@pytest.mark.parametrize("trainer", ["unet", "guide", "guide with noise", "classifier"])
def test_every_trainers_card_says_what_was_trained_on_what(trainer, tiny_unet, tiny_classifier, stripes, tmp_path):
    images, labels = stripes
    reports, told = [], {"data": "Stripes, drawn.", "progress": None}
    told["progress"] = reports.append
    attack = Perturbation(epsilon=0.1, num_steps=1)
    if trainer == "unet":
        config = DiffusionTraining(steps=1, batch_size=4, t_max=40, seed=9)
        model = diffusion.train_diffusion(images, tiny_unet, config, tmp_path, held_out=images[:5], **told)
        says = [
            "# Noise predictor (U-Net)",
            "t_star up to 40",
            "timesteps 0 to 39 only",
            "held-out: RMSE",
            "training: RMSE",
            "## Network: UNetConfig",
        ]
    elif trainer == "classifier":
        config = ClassifierTraining(steps=1, batch_size=4, attack=attack, shift=0, seed=9)
        model = classifier.train_classifier(images, labels, tiny_classifier, config, tmp_path, **told)
        says = ["# Plain classifier", "robust accuracy (PGD-1, linf 0.1)", "## Training: ClassifierTraining"]
    else:
        noise = {"t_star": 30} if "noise" in trainer else {}
        config = TradesTraining(steps=1, batch_size=4, attack=attack, shift=0, seed=9, **noise)
        model = trades.train_trades(images, labels, tiny_classifier, config, tmp_path, held_out=(images[:5], labels[:5]), **told)
        seen = "images noised to timesteps below 30" if noise else "images without noise"
        says = [
            "# Guide (TRADES)",
            f"trained on {seen}, perturbed in linf up to 0.1",
            "held-out: robust accuracy (PGD-4, linf 0.1)",
        ]
        says += ["held-out: standard accuracy on noisy views"] if noise else []
    name = trainer.split()[0]
    text = (tmp_path / f"{name}.md").read_text()
    for words in ["Stripes, drawn.", "40 images of shape 1x4x4; seed 9", f"{count_parameters(model):,} parameters", *says]:
        assert words in text, words
    assert ("held-out" in text) == (trainer != "classifier"), "what was not given was not measured"
    assert reports[-1]["network"] == name and reports[-1]["weights"] == str(tmp_path / f"{name}.safetensors")
    rows = dict(re.findall(r"^\| (.+?) \| (.+?) \|$", text, re.M))
    assert {figure: rows[figure] for figure in reports[-1]["figures"]} == {
        k: f"{v:.4g}" for k, v in reports[-1]["figures"].items()
    }
    assert not model.training and all(parameter.requires_grad for parameter in model.parameters())


def test_a_card_without_t_max_speaks_of_the_whole_schedule(stripes, tmp_path):
    network = UNetConfig(
        image_size=4, in_channels=1, base_channels=8, channel_mult=(1,), num_res_blocks=1, attention_resolutions=(), norm_groups=4
    )
    config = DiffusionTraining(steps=1, batch_size=2, schedule=ScheduleConfig(num_timesteps=50))
    diffusion.train_diffusion(stripes[0], network, config, tmp_path)
    text = (tmp_path / "unet.md").read_text()
    assert "t_star up to 50" in text and "timesteps 0 to 49 only" in text and "at timestep 49 |" in text
