import pytest
import torch
import torch.nn.functional as F

from purify_engine.config import Perturbation, ScheduleConfig, TradesTraining
from purify_engine.models import Classifier
from purify_engine.reference.schedules import make_schedule
from purify_engine.training.perturbation import robust_accuracy
from purify_engine.training.trades import divergence, noisy_view, trades_loss, train_trades

SCHEDULE = make_schedule(ScheduleConfig())
ATTACK = Perturbation(epsilon=0.2, step_size=0.1, num_steps=4)


def test_divergence_is_the_kullback_leibler_divergence_of_the_predictions():
    logits, perturbed = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    predictions = [torch.distributions.Categorical(logits=each) for each in (logits, perturbed)]
    expected = torch.distributions.kl_divergence(*predictions).sum()
    torch.testing.assert_close(divergence(logits, perturbed), expected, rtol=1e-12, atol=0)


def test_without_a_trade_off_the_loss_is_cross_entropy(tiny_classifier, stripes):
    images, labels = stripes
    model = Classifier(tiny_classifier)
    loss = trades_loss(model, images, labels, TradesTraining(trade_off=0, attack=ATTACK), SCHEDULE)
    assert loss == F.cross_entropy(model.train()(images), labels)


def test_the_robust_term_is_a_maximum_found_in_eval_mode(tiny_classifier, stripes):
    images, labels = stripes
    model = Classifier(tiny_classifier)
    calls = []
    model.register_forward_pre_hook(lambda module, _: calls.append(module.training))
    torch.manual_seed(0)
    strong = trades_loss(model, images, labels, TradesTraining(attack=ATTACK), SCHEDULE)
    weak = trades_loss(model, images, labels, TradesTraining(attack=Perturbation(epsilon=0.0)), SCHEDULE)
    assert strong > weak
    assert calls[:7] == [False] * 5 + [True] * 2, "the attack must not touch the running statistics"


def test_an_image_and_its_perturbed_copy_share_their_noise():
    images, delta = torch.rand(64, 1, 4, 4, dtype=torch.float64), torch.full((64, 1, 4, 4), 0.1, dtype=torch.float64)
    torch.manual_seed(1)
    view = noisy_view(images, TradesTraining(t_star=150, clean_share=0.25), SCHEDULE)
    ratio = (view(images + delta) - view(images)) / delta  # sqrt(alpha_bar) of each image, everywhere in it
    gain = ratio.flatten(1).mean(1)
    assert (ratio - gain.view(-1, 1, 1, 1)).abs().max() < 1e-12
    assert gain.max() <= 1 + 1e-12 and gain.min() >= SCHEDULE.alphas_cumprod[149].sqrt() - 1e-12
    clean = (view(images) - images).abs().flatten(1).amax(1) < 1e-6
    assert 5 < clean.sum() < 30


def test_a_view_is_the_purifiers_noisy_image_in_unit_range():
    images = torch.rand(4000, 1, 2, 2, dtype=torch.float64)
    torch.manual_seed(0)
    view = noisy_view(images, TradesTraining(t_star=1), SCHEDULE)  # every image at timestep 0
    alpha_bar = SCHEDULE.alphas_cumprod[0]
    noise = view(images) - (alpha_bar.sqrt() * (2 * images - 1) + 1) / 2
    # The standard error of a standard deviation from 16,000 draws is 0.6 %.
    assert noise.std() == pytest.approx(float((1 - alpha_bar).sqrt()) / 2, rel=0.03)


def test_without_noise_the_view_is_the_image_itself():
    images = torch.rand(3, 1, 2, 2)
    assert noisy_view(images, TradesTraining(t_star=0), SCHEDULE)(images) is images


def test_a_guide_learns_to_resist(tiny_classifier, stripes, tmp_path):
    images, labels = stripes
    config = TradesTraining(steps=40, batch_size=20, learning_rate=0.05, shift=0, attack=ATTACK)
    reports = []
    guide = train_trades(images, labels, tiny_classifier, config, tmp_path, held_out=stripes, progress=reports.append)
    assert robust_accuracy(guide, images, labels, ATTACK) >= 0.9
    assert reports[-1]["figures"]["held-out: standard accuracy"] == 1
    assert not guide.training
