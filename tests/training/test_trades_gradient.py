"""The gradient of the TRADES loss in the parameters, against its formula (Zhang et al. 2019), in float64."""

import pytest
import torch
from torch import nn

from purify_engine.config import Perturbation, ScheduleConfig, TradesTraining
from purify_engine.reference.schedules import make_schedule
from purify_engine.training import trades
from purify_engine.training.trades import trades_loss

SCHEDULE = make_schedule(ScheduleConfig())
IMAGES = torch.rand(6, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
MOVED = (IMAGES + 0.1 * torch.randn(6, 1, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)).clamp(0, 1)
LABELS = torch.tensor([0, 2, 1, 1, 0, 2])


def linear_model():
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 3, dtype=torch.float64))


@pytest.fixture(autouse=True)
def fixed_attack(monkeypatch):
    monkeypatch.setattr(trades, "perturb", lambda images, objective, attack, start: MOVED)


def probabilities(model, images):
    with torch.no_grad():
        return model(images).softmax(1)


def gradient_by_hand(model, trade_off):
    """d loss / d (weight, bias) of a linear softmax classifier, without autograd.

    With p, q the predictions at x and x', the loss is mean(-log p_y) + trade_off * mean(sum_c p_c log(p_c / q_c)). Its derivative
    in the logits at x is p - onehot(y) + trade_off * p_c (log(p_c / q_c) - KL), and at x' trade_off * (q - p).
    """
    p, q = probabilities(model, IMAGES), probabilities(model, MOVED)
    weight, bias = torch.zeros(3, 4, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    for i in range(6):
        divergence = sum(p[i, c] * (p[i, c] / q[i, c]).log() for c in range(3))
        for c in range(3):
            at_clean = p[i, c] - (LABELS[i] == c).double() + trade_off * p[i, c] * ((p[i, c] / q[i, c]).log() - divergence)
            at_moved = trade_off * (q[i, c] - p[i, c])
            weight[c] += (at_clean * IMAGES[i].flatten() + at_moved * MOVED[i].flatten()) / 6
            bias[c] += (at_clean + at_moved) / 6
    return weight, bias


@pytest.mark.parametrize("trade_off", [0.0, 1.0, 6.0])
def test_both_terms_and_both_sides_of_the_divergence_are_differentiated(trade_off):
    torch.manual_seed(3)
    model = linear_model()
    config = TradesTraining(trade_off=trade_off, attack=Perturbation(num_steps=1))
    trades_loss(model, IMAGES, LABELS, config, SCHEDULE).backward()
    weight, bias = gradient_by_hand(model, trade_off)
    torch.testing.assert_close(model[1].weight.grad, weight, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(model[1].bias.grad, bias, rtol=1e-10, atol=1e-14)


def test_the_attack_climbs_the_divergence_from_the_clean_prediction_in_eval_mode(monkeypatch):
    model, asked = linear_model(), []

    def look(images, objective, attack, start):
        expected = (probabilities(model, images) * (probabilities(model, images).log() - probabilities(model, MOVED).log())).sum()
        torch.testing.assert_close(objective(MOVED).detach(), expected)
        asked.append((images, attack, model.training))
        return MOVED

    monkeypatch.setattr(trades, "perturb", look)
    attack = Perturbation(epsilon=0.3)
    trades_loss(model, IMAGES, LABELS, TradesTraining(attack=attack), SCHEDULE)
    assert len(asked) == 1 and asked[0][0] is IMAGES and asked[0][1:] == (attack, False) and model.training


def test_the_search_leaves_no_gradient_in_the_parameters(monkeypatch):
    model = linear_model()
    monkeypatch.undo()
    trades_loss(model, IMAGES, LABELS, TradesTraining(attack=Perturbation(num_steps=2)), SCHEDULE)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_clean_and_perturbed_images_are_shown_with_the_same_noise(monkeypatch):
    """With images that did not move, the robust term is zero only if both sides see the same noise."""
    monkeypatch.setattr(trades, "perturb", lambda images, objective, attack, start: images)
    model = linear_model()
    config = TradesTraining(t_star=500, trade_off=1e6)
    assert trades_loss(model, IMAGES, LABELS, config, SCHEDULE) < 10


@pytest.mark.parametrize("share, expected", [(0.0, 0), (0.25, 500), (1.0, 2000)])
def test_the_clean_share_is_the_share_of_clean_views(share, expected):
    images = torch.full((2000, 1, 1, 1), 0.3, dtype=torch.float64)
    torch.manual_seed(0)
    view = trades.noisy_view(images, TradesTraining(t_star=900, clean_share=share), SCHEDULE)
    clean = int(((view(images) - images).abs() < 1e-9).sum())
    assert abs(clean - expected) <= 5 * (2000 * share * (1 - share)) ** 0.5  # five standard deviations


def test_views_reach_every_timestep_below_t_star_and_none_beyond():
    images = torch.zeros(3000, 1, 1, 1, dtype=torch.float64)
    torch.manual_seed(0)
    view = trades.noisy_view(images, TradesTraining(t_star=12), SCHEDULE)
    gains = view(images + 1) - view(images)  # sqrt(alpha_bar) of each image's timestep
    expected = SCHEDULE.alphas_cumprod[:12].sqrt().flip(0)
    torch.testing.assert_close(gains.flatten().mul(1e9).round().div(1e9).unique(), expected, rtol=0, atol=1e-8)
