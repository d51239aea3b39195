"""Networks that put out the clean image, v or EDM's mixture: eps is exact where the truth is known, as are gradients."""

import copy
import math
import pickle
from dataclasses import replace

import pytest
import torch
from torch import nn

from purify_engine.config import ScheduleConfig, UNetConfig
from purify_engine.engine.cpu_capture import CpuCapture
from purify_engine.engine.gradients import differentiable_run
from purify_engine.engine.guide import NoGuide
from purify_engine.engine.loop import Loop
from purify_engine.engine.plan import write_plan
from purify_engine.engine.process import ReverseProcess
from purify_engine.engine.replay import Replay
from purify_engine.models import Denoiser
from purify_engine.models.unet import UNet
from purify_engine.reference.prediction import edm_label, mixture
from purify_engine.reference.schedules import make_schedule
from purify_engine.testing.oracles import GaussianWorld
from purify_engine.types import NoiseKey
from tests.models.networks import FAMILIES, lively

SCHEDULE = make_schedule(ScheduleConfig())
NOISE = NoiseKey(torch.tensor(11), torch.arange(2))
PREDICTIONS = ["x0", "v", "edm"]
WORLD = GaussianWorld(mean=0.3, var=0.2)


def plan(num_steps=4, sampler="ddpm", net_dtype=None):
    return write_plan(SCHEDULE, 150, num_steps, sampler, eta=1.0).to("cpu", net_dtype)


def images(dtype=torch.float64):
    return (torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(5), dtype=torch.float64) * 2 - 1).to(dtype)


class PerfectNetwork(nn.Module):
    """What a network of each kind puts out in a Gaussian world, from what it is told and what it reads alone."""

    def __init__(self, prediction):
        super().__init__()
        self.config = UNetConfig(prediction=prediction, in_channels=1)
        self.time_embedding = nn.Identity()
        self.time_embedding.forward = lambda times: (times[:, None],)

    def decode(self, x, embeddings):
        told = embeddings[0].to(torch.float64).squeeze()
        return {"x0": self.clean, "v": self.v, "edm": self.edm}[self.config.prediction](x, told)

    def clean(self, x, t):
        """E[x_start | x_t] of N(m, v) and x_t ~ N(signal x_start, sigma^2)."""
        alpha_bar = SCHEDULE.alphas_cumprod[int(t)]
        precision = 1 / WORLD.var + alpha_bar / (1 - alpha_bar)
        return (WORLD.mean / WORLD.var + alpha_bar.sqrt() * x / (1 - alpha_bar)) / precision

    def v(self, x, t):
        alpha_bar = SCHEDULE.alphas_cumprod[int(t)]
        clean = self.clean(x, t)
        eps = (x - alpha_bar.sqrt() * clean) / (1 - alpha_bar).sqrt()
        return alpha_bar.sqrt() * eps - (1 - alpha_bar).sqrt() * clean

    def edm(self, x, label):
        """From the table of Karras et al. 2022: the clean image out of y = x_start + s z, then what F must be for it."""
        s, data = math.exp(4 * label), 0.5
        y = x * math.sqrt(s**2 + data**2)  # c_in = 1 / sqrt(s^2 + data^2)
        clean = (WORLD.mean / WORLD.var + y / s**2) / (1 / WORLD.var + 1 / s**2)
        c_skip, c_out = data**2 / (s**2 + data**2), s * data / math.sqrt(s**2 + data**2)
        return (clean - c_skip * y) / c_out


# EDM's network is told a marginal, so it fits plans whose marginals are no index's.
@pytest.mark.parametrize(("prediction", "sampler"), [*((kind, "ddpm") for kind in PREDICTIONS), ("edm", "vp_sde")], ids=str)
def test_a_perfect_network_of_any_kind_makes_the_exact_eps(prediction, sampler):
    denoiser, one = Denoiser(PerfectNetwork(prediction)), plan(6, sampler)
    for step in one.steps:
        x_t = 1.3 * images()
        assert (denoiser(x_t, one, step) - WORLD.denoiser(x_t, one, step)).abs().max() < 1e-12


def test_edm_of_unit_data_would_be_v_of_the_opposite_sign(monkeypatch):
    marginals = plan(9).marginals
    monkeypatch.setattr("purify_engine.reference.prediction.SIGMA_DATA", 1.0)
    edm, v = mixture("edm", marginals), mixture("v", marginals)
    torch.testing.assert_close(edm * torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64), v, rtol=1e-14, atol=0)
    assert torch.equal(mixture("eps", marginals), torch.tensor([[0.0, 1.0, 1.0]], dtype=torch.float64).expand(9, 3))
    signal, sigma = marginals.unbind(dim=1)
    torch.testing.assert_close((4 * edm_label(marginals)).exp(), sigma / signal)


def denoiser(prediction, dtype=torch.float64, seed=0):
    return Denoiser(lively(UNet(replace(FAMILIES["ddpm++"], prediction=prediction)), seed).to(dtype)).requires_grad_(False)


def process(model, one):
    return ReverseProcess(one, model, NoGuide(), NOISE)


@pytest.mark.parametrize(
    ("prediction", "dtype"),
    [("x0", torch.bfloat16), ("v", torch.float32), ("edm", torch.float32), ("edm", torch.bfloat16)],
    ids=str,
)
def test_a_recording_equals_the_loop_to_the_bit(prediction, dtype):
    model, replay = denoiser(prediction, dtype), Replay(CpuCapture())
    net_dtype = None if dtype == torch.float32 else dtype
    for one in (plan(3, net_dtype=net_dtype), plan(4, "vp_sde", net_dtype=net_dtype), plan(2, net_dtype=net_dtype)):
        with torch.no_grad():
            wanted = Loop().run(process(model, one), images(torch.float32))
        assert torch.equal(replay.run(process(model, one), images(torch.float32)), wanted)


@pytest.mark.parametrize("prediction", ["x0", "edm"])
def test_the_exact_gradient_follows_both_terms(prediction):
    model, one = denoiser(prediction), plan(3)

    def gradient(run):
        x = images().requires_grad_()
        (run(x) ** 2).sum().backward()
        return x.grad

    stored = gradient(lambda x: Loop().run(process(model, one), x))
    exact = gradient(lambda x: differentiable_run(Loop(), process(model, one), x))
    recorded = gradient(lambda x: differentiable_run(Replay(CpuCapture()), process(model, one), x))
    assert (exact - stored).abs().max() < 1e-12 * stored.abs().max() and torch.equal(recorded, exact)
    direction, h = torch.randn(images().shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64), 1e-5
    with torch.no_grad():
        up, down = (float((Loop().run(process(model, one), images() + by * direction) ** 2).sum()) for by in (h, -h))
    along = float((exact * direction).sum())
    assert abs((up - down) / (2 * h) - along) < 1e-6 * max(abs(along), 1e-3 * float(exact.norm()))


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_x_t_reaches_eps_unrounded_where_networks_read_16_bits(prediction):
    """A network of x0 has x_t / sigma in its eps: the rounding of x_t would grow as much."""
    model, exact = denoiser(prediction, torch.bfloat16), denoiser(prediction)
    nought = [module.conv_out.requires_grad_(False) for module in (model.unet, exact.unet)]
    for conv in nought:
        conv.weight.zero_(), conv.bias.zero_()  # what is left of eps is what it has of x_t
    one, x_t = plan(4, net_dtype=torch.bfloat16), images(torch.float32)
    made = process(model, one).terms(x_t, x_t.bfloat16(), (), one.steps[3])
    wanted = exact(x_t.double(), plan(4), one.steps[3])
    assert made.eps.dtype == torch.float32
    assert (made.eps - wanted).abs().max() < 1e-6 * wanted.abs().max()


def test_what_is_kept_is_dropped_with_its_plan_and_made_anew_when_it_changes():
    model, one = denoiser("edm"), plan(3)
    x, step = images(), one.steps[1]
    before = model(x, one, step)
    assert len(model.mixing) == len(model.table) == 1 and torch.equal(model(x, one, step), before)
    other = plan(2, "vp_sde")
    wanted = model(x, other, other.steps[1])
    one.marginals[1].copy_(other.marginals[1])  # as a graph's tables are filled
    assert (model(x, one, step) - wanted).abs().max() < 1e-12 < (wanted - before).abs().max()
    twin = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    assert len(twin.mixing) == 0 and torch.equal(twin(x, one, step), model(x, one, step))
    del other
    assert len(model.mixing) == len(model.table) == 1


def test_an_inference_plan_is_read_as_it_is():
    """Its changes are not counted, so nothing may be kept."""
    model = denoiser("edm")
    with torch.inference_mode():
        one = plan(3)
    assert one.marginals.is_inference()
    with torch.inference_mode():
        eps = model(images(), one, torch.tensor(1))
    assert len(model.mixing) == 0
    assert (eps - model(images(), plan(3), torch.tensor(1))).abs().max() < 1e-12


def test_a_learned_variance_is_refused():
    with pytest.raises(ValueError, match="^prediction must be 'eps' where learned_variance is True, got 'v'$"):
        Denoiser(UNet(replace(FAMILIES["adm"], prediction="v")))
