"""StAdv: where its pixels come from, and where it reads its gradients."""

import numpy as np
import pytest
import torch

from purify_engine.config import AttackConfig
from purify_engine.evaluation.chance import Chance
from purify_engine.evaluation.draws import Draws
from purify_engine.evaluation.spatial import stadv, warp

SIZE = 12
INNER = (slice(None), slice(None), slice(2, -2), slice(2, -2))  # where no shift reaches over the border


def ramp(along, batch=2):
    """An image that rises by 1/20 a pixel along x or y: how far a pixel was fetched from is read off its value."""
    line = torch.arange(SIZE) / 20
    image = line.expand(SIZE, SIZE) if along == "x" else line[:, None].expand(SIZE, SIZE)
    return image.expand(batch, 1, SIZE, SIZE).contiguous()


def run(objective, images, config, averaged=True):
    ids = torch.arange(len(images))
    return stadv(objective, images, ids, config, Draws(config, averaged=averaged), Chance(config.seed, ids))


def spatial(**settings):
    return AttackConfig(name="st", kind="stadv", norm="spatial", **settings)


@pytest.mark.parametrize("along", ["x", "y"])
def test_gradients_are_read_at_a_flow_whose_jitter_fades_from_the_whole_bound_to_the_last_steps_share(along):
    images, seen = ramp(along), []

    def flat(x, ids, draw):  # its gradient is zero, so the flow stays where it starts and all that is seen is jitter
        seen.append(20 * (x - images)[INNER].detach())
        return (0 * x).sum(dim=(1, 2, 3))

    attacked = run(flat, images, spatial(epsilon=0.8, num_steps=4, num_eot=1))
    torch.testing.assert_close(attacked, images)
    for step, shift in enumerate(seen):
        bound = 0.8 * (4 - step) / 4  # 0.8, 0.6, 0.4, 0.2
        assert 0.93 * bound < shift.max() <= bound + 1e-5 and -bound - 1e-5 <= shift.min() < -0.93 * bound
        assert abs(shift.mean()) < 0.25 * bound  # uniform over both signs: the mean of 128 has a standard error of 0.05 bound
    assert len(seen) == 4 and not torch.equal(seen[0], seen[1])


@pytest.mark.parametrize(
    ("step_size", "num_steps", "shift"), [(0.1, 1, 0.1), (0.1, 2, 0.2), (0.1, 9, 0.5), (None, 5, 0.5), (None, 1, 0.5)]
)
def test_the_flow_climbs_by_signed_steps_inside_its_bound(step_size, num_steps, shift):
    images = ramp("x")

    def brighter(x, ids, draw):
        return x.sum(dim=(1, 2, 3))

    attacked = run(brighter, images, spatial(epsilon=0.5, step_size=step_size, num_steps=num_steps, num_eot=1))
    torch.testing.assert_close(20 * (attacked - images)[INNER], torch.full_like(images[INNER], shift), atol=1e-5, rtol=0)


def test_the_step_is_two_and_a_half_bounds_over_the_steps_unless_given():
    images = ramp("x")
    attacked = run(lambda x, ids, draw: x.sum(dim=(1, 2, 3)), images, spatial(epsilon=0.5, num_steps=10, num_eot=1))
    reached = 20 * (attacked - images)[INNER]
    assert torch.allclose(reached, torch.full_like(reached, 0.5), atol=1e-5)  # four steps of 0.125 reach the bound
    weights = iter([1.0] * 2 + [0.0] * 8)  # the first two steps alone climb
    attacked = run(
        lambda x, ids, draw: next(weights) * x.sum(dim=(1, 2, 3)), images, spatial(epsilon=0.5, num_steps=10, num_eot=1)
    )
    torch.testing.assert_close(20 * (attacked - images)[INNER], torch.full_like(images[INNER], 0.25), atol=1e-5, rtol=0)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_gradients_are_read_inside_the_bound_also_where_the_flow_has_reached_it(sign):
    images, seen = ramp("x"), []

    def objective(x, ids, draw):
        seen.append(20 * (x - images)[INNER].detach())
        return sign * x.sum(dim=(1, 2, 3))

    run(objective, images, spatial(epsilon=0.5, step_size=9.0, num_steps=4, num_eot=1))
    for shift in seen[1:]:  # from the second step on the flow is at its bound, and jitter would lead beyond
        assert shift.abs().max() <= 0.5 + 1e-5 and (sign * shift).min() < 0.5 - 0.05


def test_gradients_are_summed_over_the_draws_of_a_step_each_with_a_jitter_of_its_own():
    images, seen = ramp("x"), []

    def objective(x, ids, draw):
        seen.append((draw, ids.tolist(), x.detach()))
        return (1.0 if draw % 3 == 0 else -0.4) * x.sum(dim=(1, 2, 3))  # 1 - 0.4 - 0.4 > 0: the sum climbs, its last term sinks

    attacked = run(objective, images, spatial(epsilon=0.5, step_size=0.1, num_steps=2, num_eot=3))
    torch.testing.assert_close(20 * (attacked - images)[INNER], torch.full_like(images[INNER], 0.2), atol=1e-5, rtol=0)
    assert [draw for draw, _, _ in seen] == [0, 1, 2, 3, 4, 5] and all(ids == [0, 1] for _, ids, _ in seen)
    assert not torch.equal(seen[0][2], seen[1][2])


def test_warp_fetches_bilinearly_from_x_plus_the_first_and_y_plus_the_second_flow():
    generator = np.random.default_rng(0)
    images, flow = generator.random((1, 2, 5, 7)), generator.uniform(-1.5, 1.5, (1, 2, 5, 7))
    expected = np.empty_like(images)
    for row in range(5):
        for column in range(7):
            y = min(max(row + flow[0, 1, row, column], 0), 4)  # beyond the border is the border
            x = min(max(column + flow[0, 0, row, column], 0), 6)
            top, left = min(int(y), 3), min(int(x), 5)
            v, u = y - top, x - left
            corners = images[0, :, top : top + 2, left : left + 2]
            expected[0, :, row, column] = (1 - v) * ((1 - u) * corners[:, 0, 0] + u * corners[:, 0, 1]) + v * (
                (1 - u) * corners[:, 1, 0] + u * corners[:, 1, 1]
            )
    torch.testing.assert_close(warp(torch.tensor(images), torch.tensor(flow)), torch.tensor(expected))


def test_warp_stays_inside_the_images_range():
    extreme = (torch.rand(1, 1, 9, 9, generator=torch.Generator().manual_seed(2)) > 0.5).float()
    flow = torch.rand(1, 2, 9, 9, generator=torch.Generator().manual_seed(3)) - 0.5
    assert warp(extreme, flow).min() >= 0 and warp(extreme, flow).max() <= 1
    assert warp(torch.tensor([[[[-0.5, 1.5]]]]), torch.zeros(1, 2, 1, 2)).tolist() == [[[[0.0, 1.0]]]]
