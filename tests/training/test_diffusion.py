import pytest
import torch
from torch import nn

from purify_engine.config import DiffusionTraining, ScheduleConfig
from purify_engine.models import UNet, load_safetensors
from purify_engine.reference.schedules import make_schedule
from purify_engine.training.diffusion import denoising_error, noise_prediction_loss, train_diffusion

SCHEDULE = make_schedule(ScheduleConfig())


class Recorder(nn.Module):
    """Predicts the noise rightly for images that are all `value`, and remembers the times it was asked about."""

    def __init__(self, value, channels=1):
        super().__init__()
        self.x_start, self.channels, self.times = 2 * value - 1, channels, []

    def forward(self, x, t):
        self.times.append(t)
        alpha_bar = SCHEDULE.alphas_cumprod.to(x)[t.long()].view(-1, 1, 1, 1)
        return ((x - alpha_bar.sqrt() * self.x_start) / (1 - alpha_bar).sqrt()).repeat(1, self.channels, 1, 1)


@pytest.mark.parametrize("channels", [1, 2], ids=["noise only", "noise and variance"])
def test_the_true_noise_has_no_loss(channels):
    images = torch.full((64, 1, 3, 3), 0.7, dtype=torch.float64)
    assert noise_prediction_loss(Recorder(0.7, channels), images, SCHEDULE, t_max=200) < 1e-20


def test_predicting_nothing_costs_the_variance_of_the_noise():
    images = torch.rand(2000, 1, 4, 4)
    torch.manual_seed(0)
    loss = noise_prediction_loss(lambda x, t: torch.zeros_like(x), images, SCHEDULE, t_max=200)
    assert float(loss) == pytest.approx(1, abs=0.03)  # five standard errors of 32,000 squared normals


def test_timesteps_fill_the_range_and_never_leave_it():
    model = Recorder(0.5)
    noise_prediction_loss(model, torch.zeros(3000, 1, 1, 1), SCHEDULE, t_max=20)
    assert model.times[0].unique().tolist() == list(range(20))


def test_denoising_error_is_that_of_the_one_shot_estimate():
    images = torch.full((8, 1, 3, 3), 0.6, dtype=torch.float64)
    assert denoising_error(Recorder(0.6), images, SCHEDULE, index=100) < 1e-12
    assert denoising_error(Recorder(0.5), images, SCHEDULE, index=100) == pytest.approx(0.1)


def test_what_is_saved_is_the_average_and_it_denoises(tiny_unet, stripes, tmp_path):
    config = DiffusionTraining(
        steps=60, batch_size=20, learning_rate=1e-2, warmup_steps=5, ema_decay=0.8, t_max=300, flip=False, report_every=10
    )
    reports = []
    model = train_diffusion(stripes[0], tiny_unet, config, tmp_path, held_out=stripes[0], progress=reports.append)
    losses = [report["loss"] for report in reports if "loss" in report]
    assert losses[-1] < 0.5 < 0.7 < losses[0]
    loaded = UNet(tiny_unet)
    load_safetensors(loaded, tmp_path / "unet.safetensors")
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    noise_left = ((1 - SCHEDULE.alphas_cumprod[149]) / SCHEDULE.alphas_cumprod[149]).sqrt() / 2  # of the estimate that ignores it
    assert denoising_error(model, stripes[0], SCHEDULE, index=149) < 0.7 * noise_left
