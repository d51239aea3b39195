"""A batch in parts, one after another or one a process: the same draws, the same mean loss, the same gradient."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from purify_engine.config import DiffusionTraining, Perturbation, ScheduleConfig, TradesTraining
from purify_engine.reference.schedules import make_schedule
from purify_engine.training.diffusion import draw_noise, noise_prediction_loss, train_diffusion
from purify_engine.training.processes import Processes, join
from purify_engine.training.trades import draw_views, trades_loss

SCHEDULE = make_schedule(ScheduleConfig())
CONFIG = DiffusionTraining(
    steps=4, batch_size=10, warmup_steps=0, learning_rate=1e-2, report_every=1, checkpoint_every=2, shift=1, precision="float32"
)
CLOSE = {"rtol": 0, "atol": 1e-10}  # float64, over a few steps


@pytest.mark.parametrize(("batch", "accumulate", "count"), [(10, 1, 1), (10, 3, 1), (10, 2, 2), (7, 1, 3), (6, 2, 3)])
def test_the_shares_of_all_processes_are_the_batch_once(batch, accumulate, count):
    parts = [Processes(rank, count).parts(batch, accumulate) for rank in range(count)]
    assert [len(each) for each in parts] == [accumulate] * count
    rows = [list(range(batch))[part] for each in parts for part in each]
    assert sum(rows, []) == list(range(batch)) and max(map(len, rows)) - min(map(len, rows)) <= 1


def test_a_batch_of_fewer_images_than_parts_is_refused():
    with pytest.raises(ValueError, match=r"^batch_size must be at least 6, an image for each part in each process, got 5$"):
        Processes(0, 3).parts(5, 2)


def test_without_torchrun_a_process_is_alone():
    assert join() == Processes(0, 1) and join().is_first
    assert join().largest((1.0, 2.0), torch.device("cpu")) == (1.0, 2.0)


def test_a_batch_in_parts_trains_as_a_whole_one(tiny_unet, stripes, tmp_path):
    images, reports = stripes[0].double(), {1: [], 3: []}
    torch.set_default_dtype(torch.float64)
    try:
        whole, parts = (
            train_diffusion(
                images, tiny_unet, replace(CONFIG, accumulate=each), tmp_path / str(each), progress=reports[each].append
            )
            for each in (1, 3)
        )
    finally:
        torch.set_default_dtype(torch.float32)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], value, **CLOSE)
    losses = [[report["loss"] for report in each if "step" in report] for each in reports.values()]
    assert losses[0] == pytest.approx(losses[1], abs=1e-10) and len({*losses[0]}) == 4
    assert "batches in 3 parts" in (tmp_path / "3/unet.md").read_text()


@pytest.mark.parametrize("t_star", [0, 300])
def test_the_loss_of_a_guide_is_the_mean_over_its_parts(t_star):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).double()
    images, labels = torch.rand(6, 1, 2, 2).double(), torch.arange(6) % 3
    config = TradesTraining(attack=Perturbation(num_steps=2), t_star=t_star, clean_share=0.3)
    torch.manual_seed(1)
    drawn = (*draw_views(images, config), torch.randn_like(images))
    torch.manual_seed(1)
    whole = trades_loss(model, images, labels, config, SCHEDULE)  # draws the same, in the same order
    assert whole == trades_loss(model, images, labels, config, SCHEDULE, *drawn)
    parts = [(slice(0, 2), 2), (slice(2, 6), 4)]
    mean = sum(n / 6 * trades_loss(model, images[p], labels[p], config, SCHEDULE, *(d[p] for d in drawn)) for p, n in parts)
    torch.testing.assert_close(mean, whole, rtol=1e-12, atol=0)


def test_noise_that_was_drawn_before_is_what_is_predicted():
    images, model = torch.rand(5, 1, 2, 2), lambda x, t: x * t.view(-1, 1, 1, 1)
    torch.manual_seed(2)
    drawn = draw_noise(images, 50)
    torch.manual_seed(2)
    assert noise_prediction_loss(model, images, SCHEDULE, 50) == noise_prediction_loss(model, images, SCHEDULE, 50, *drawn)
    assert int(drawn[0].max()) < 50


TOGETHER = """
import sys, torch
from pathlib import Path
from purify_engine.config import DiffusionTraining, UNetConfig
from purify_engine.training.diffusion import train_diffusion
from purify_engine.training.processes import join
from tests.training.test_shares import CONFIG
torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
out, images, network = torch.load(sys.argv[1], weights_only=False)
here, seen = join(), []
assert here.count == 2
model = train_diffusion(images, network, CONFIG, Path(out), progress=seen.append)
assert bool(seen) == here.is_first
if here.is_first:
    losses = [report["loss"] for report in seen if "step" in report]
    torch.save((losses, model.state_dict()), Path(out) / "result")
"""


@pytest.mark.slow
def test_two_processes_train_as_one(tiny_unet, stripes, tmp_path):
    images, reports = stripes[0].double(), []
    torch.set_default_dtype(torch.float64)
    try:
        alone = train_diffusion(images, tiny_unet, CONFIG, tmp_path / "alone", progress=reports.append)
    finally:
        torch.set_default_dtype(torch.float32)
    (tmp_path / "together").mkdir()
    torch.save((str(tmp_path / "together"), images, tiny_unet), tmp_path / "given")
    (tmp_path / "together.py").write_text(TOGETHER)
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}  # noqa: PTH109
    subprocess.run([*words, tmp_path / "together.py", tmp_path / "given"], env=environment, check=True, timeout=300)
    losses, weights = torch.load(tmp_path / "together/result", weights_only=True)
    assert losses == pytest.approx([report["loss"] for report in reports if "step" in report], abs=1e-10)
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(weights[name], value, **CLOSE)
    card = (tmp_path / "together/unet.md").read_text()
    assert "2 processes" in card
