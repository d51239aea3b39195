"""The denoiser and its table of time embeddings: always the answer of the network as it is now."""

import copy
import gc
import pickle
from types import SimpleNamespace

import pytest
import torch

from purify_engine.models import Denoiser
from tests.models.networks import FAMILIES, noisy_images, small_unet

X = noisy_images()
STEP = torch.tensor(1)


def plan(*times, learns_variance=False):
    times = torch.tensor(times or (900.0, 40.0, 0.0), dtype=torch.float64)
    return SimpleNamespace(times=times, learns_variance=learns_variance)


def frozen(family="ddpm", seed=0):
    return Denoiser(small_unet(family, seed)).requires_grad_(False)


def direct(denoiser, plan, step=STEP, x=X):
    """The answer without any table."""
    return denoiser.unet(x, plan.times[step][None])[:, :1]


def difference(denoiser, plan):
    """Largest difference between the denoiser and the direct answer, in the network's own dtype."""
    x = X.to(next(denoiser.parameters()))
    return (denoiser(x, plan, STEP) - direct(denoiser, plan, x=x)).abs().max()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_row_of_the_table_is_the_direct_answer(family):
    denoiser, times = frozen(family), plan()
    for step in torch.arange(3).unbind():
        assert (denoiser(X, times, step) - direct(denoiser, times, step)).abs().max() < 1e-12
    assert len(denoiser.table) == 1


def test_learned_variance_is_dropped():
    denoiser = frozen("adm")
    assert denoiser.unet(X, torch.tensor([40.0])).shape[1] == 2
    assert denoiser(X, plan(), STEP).shape == X.shape


def test_learned_variance_is_handed_on_where_the_plan_asks_for_it():
    denoiser = frozen("adm")
    eps, v = denoiser(X, plan(learns_variance=True), STEP)
    direct = denoiser.unet(X, plan().times[STEP][None])
    assert (torch.cat([eps, v], dim=1) - direct).abs().max() < 1e-12 and eps.shape == v.shape


def test_reloaded_weights_are_used():
    denoiser, times = frozen(), plan()
    before = denoiser(X, times, STEP)
    denoiser.load_state_dict(frozen(seed=1).state_dict())
    assert difference(denoiser, times) < 1e-12
    assert (denoiser(X, times, STEP) - before).abs().max() > 1e-3


def test_weights_assigned_by_a_reload_are_used():
    denoiser, times = frozen(), plan()
    denoiser(X, times, STEP)
    denoiser.load_state_dict(frozen(seed=1).state_dict(), assign=True)
    assert difference(denoiser.requires_grad_(False), times) < 1e-12


def test_fine_tuned_weights_are_used():
    denoiser, times = frozen(), plan()
    before = denoiser(X, times, STEP)
    denoiser.requires_grad_(True)
    optimizer = torch.optim.SGD(denoiser.parameters(), lr=0.1)
    denoiser(X, times, STEP).square().mean().backward()
    assert all(parameter.grad is not None for parameter in denoiser.parameters())  # no table stood in the way
    optimizer.step()
    assert difference(denoiser, times) < 1e-12
    assert difference(denoiser.requires_grad_(False), times) < 1e-12
    assert (denoiser(X, times, STEP) - before).abs().max() > 1e-3


def test_weights_of_another_dtype_are_used():
    denoiser, times = frozen(), plan()
    denoiser(X, times, STEP)
    assert difference(denoiser.float(), times) < 1e-5
    assert difference(denoiser.double(), times) < 1e-12  # these were rounded on the way: not the first ones


def test_an_address_used_again_is_not_mistaken_for_the_old_weights():
    denoiser, times = frozen(), plan()
    weight = denoiser.unet.time_embedding.mlp[0].weight
    for scale in (1.0, 2.0, 3.0, 4.0):  # `.data =` frees the storage and leaves the version as it was
        weight.data = weight.data * scale
        weight.data = weight.data + 0.0
        assert difference(denoiser, times) < 1e-12


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))], ids=["deepcopy", "pickle"])
def test_a_copy_lives_its_own_life(copied):
    denoiser, times = frozen(), plan()
    before = denoiser(X, times, STEP)
    twin = copied(denoiser)
    assert len(twin.table) == 0
    twin.load_state_dict(frozen(seed=1).state_dict())
    assert difference(twin, times) < 1e-12
    assert torch.equal(denoiser(X, times, STEP), before)


def test_the_table_is_no_part_of_the_weights():
    denoiser = frozen()
    names = list(denoiser.state_dict())
    denoiser(X, plan(), STEP)
    assert list(denoiser.state_dict()) == names
    assert all(name.startswith("unet.") for name in names)


def test_a_plan_written_over_in_place_is_read_again():
    denoiser, times = frozen(), plan()
    denoiser(X, times, STEP)
    times.times.add_(17.0)
    assert difference(denoiser, times) < 1e-12


def test_plans_do_not_mix_and_their_tables_leave_with_them():
    denoiser, one, other = frozen(), plan(), plan(500.0, 3.0)
    assert difference(denoiser, one) < 1e-12 and difference(denoiser, other) < 1e-12 and difference(denoiser, one) < 1e-12
    assert len(denoiser.table) == 2
    del other
    gc.collect()
    assert len(denoiser.table) == 1


def test_a_table_made_in_inference_mode_serves_a_gradient_later():
    denoiser, times = frozen(), plan()
    with torch.inference_mode():
        denoiser(X, times, STEP)
    x = X.clone().requires_grad_()
    denoiser(x, times, STEP).square().sum().backward()
    assert x.grad is not None and x.grad.abs().max() > 0


def test_a_network_made_in_inference_mode_works():
    with torch.inference_mode():
        denoiser, times = frozen(), plan()
        assert difference(denoiser, times) < 1e-12
        assert len(denoiser.table) == 0  # its changes are not counted, so nothing may be kept


def test_autocast_does_not_leave_a_coarse_table_behind():
    denoiser, times = frozen().float(), plan()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        denoiser(X.float(), times, STEP)
    assert difference(denoiser, times) < 1e-5
