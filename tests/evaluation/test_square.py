"""The Square attack proposal by proposal."""

import pytest
import torch

from purify_engine.config import AttackConfig
from purify_engine.evaluation import square as square_module
from purify_engine.evaluation.chance import Chance
from purify_engine.evaluation.draws import Draws
from purify_engine.evaluation.square import square, square_side

IMAGES = 0.3 + 0.4 * torch.rand(4, 3, 9, 7, generator=torch.Generator().manual_seed(0))
IDS = torch.tensor([3, 1, 0, 2])
EPSILON = 0.125


def run(objective, num_steps, num_eot=1, seed=0, images=IMAGES):
    config = AttackConfig(name="sq", kind="square", epsilon=EPSILON, num_steps=num_steps, num_eot=num_eot, seed=seed)
    return square(objective, images, IDS, config, Draws(config, averaged=True), Chance(seed, IDS))


def signs(x):
    """+1 or -1 at every pixel: everything the attack makes lies on a corner of the ball."""
    delta = x - IMAGES
    torch.testing.assert_close(delta.abs(), torch.full_like(delta, EPSILON), atol=1e-6, rtol=0)
    return delta.sign()


def recorded(better):
    """An objective that records what it is shown; `better(call)` says what each call returns."""
    shown = []

    def objective(x, ids, draw):
        shown.append((x.clone(), ids, draw))
        return better(len(shown) - 1)

    return objective, shown


def test_it_starts_from_vertical_stripes_a_sign_of_its_own_for_each_image_channel_and_column():
    objective, shown = recorded(lambda call: torch.zeros(4))
    start = signs(run(objective, num_steps=1))
    assert torch.equal(start, start[:, :, :1].expand_as(start))  # equal down every column
    columns = start[:, :, 0]
    assert 20 < (columns > 0).sum() < 64  # of 84 fair coins: within four standard deviations
    assert not torch.equal(columns[0], columns[1]) and not torch.equal(columns[0, 0], columns[0, 1])


def test_every_proposal_changes_one_square_of_each_image_by_a_sign_a_channel():
    objective, shown = recorded(lambda call: torch.zeros(4))  # never better: each proposal starts from the stripes
    stripes = signs(run(objective, num_steps=40))
    places, flips = set(), set()
    for step, (proposal, ids, draw) in enumerate(shown[::2]):
        assert ids is IDS and draw == step
        side = square_side(step / 40, IMAGES)
        for image, (before, after) in enumerate(zip(stripes, signs(proposal), strict=True)):
            rows, columns = torch.nonzero((before != after).any(dim=0), as_tuple=True)
            if len(rows) == 0:
                continue  # the signs that were drawn are those that were there
            assert rows.max() - rows.min() < side and columns.max() - columns.min() < side
            top, left = int(rows.min()), int(columns.min())
            for channel in range(3):
                inside = after[channel, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
                flips.add(float(inside[0, 0]))
            places.add((image, top, left))
    assert len(places) > 40 and flips == {1.0, -1.0}
    assert max(top for _, top, _ in places) >= 7 and min(top for _, top, _ in places) == 0
    assert max(left for _, _, left in places) >= 5 and min(left for _, _, left in places) == 0


def test_a_square_is_whole_and_of_one_sign_a_channel():
    images = torch.full((1, 2, 6, 6), 0.5)
    config = AttackConfig(name="sq", kind="square", epsilon=EPSILON, num_steps=1, num_eot=1)
    for seed in range(8):
        shown = []

        def objective(x, ids, draw, shown=shown):
            shown.append(x.clone())
            return torch.zeros(1)

        ids = torch.arange(1)
        square(objective, images, ids, config, Draws(config, averaged=False), Chance(seed, ids))
        side = square_side(0, images)  # five of six pixels
        changed = shown[0] - 0.5
        for channel in range(2):
            corners = [changed[0, channel, top : top + side, left : left + side] for top in (0, 1) for left in (0, 1)]
            assert any(torch.equal(corner, corner[:1, :1].expand_as(corner)) for corner in corners)


def test_squares_lie_at_every_place_inside_each_channel_with_a_sign_of_its_own():
    images = torch.full((400, 2, 6, 5), 0.5)
    chance = Chance(0, torch.arange(400))
    delta = square_module._with_square(images, images, EPSILON, 3, chance) - 0.5  # nothing but the square differs
    places, signs_of_channels = set(), set()
    for image in delta:
        rows, columns = torch.nonzero(image[0], as_tuple=True)
        top, left = int(rows.min()), int(columns.min())
        expected = torch.zeros_like(image)
        corner = image[:, top, left]
        expected[:, top : top + 3, left : left + 3] = corner[:, None, None]
        assert torch.equal(image, expected) and torch.equal(corner.abs(), torch.full((2,), EPSILON))
        places.add((top, left))
        signs_of_channels.add(tuple(corner.sign().tolist()))
    assert places == {(top, left) for top in range(4) for left in range(3)}
    assert signs_of_channels == {(1, 1), (1, -1), (-1, 1), (-1, -1)}


def test_a_proposal_is_taken_image_by_image_where_its_mean_loss_is_larger():
    better = torch.tensor([True, False, True, False])

    def loss(call):
        is_proposal = call % 4 < 2  # two draws of the proposal, then two of the incumbent
        return torch.where(better, 1.0, -1.0) * (1 if is_proposal else 0) + (0.5 if call % 2 else -0.5)

    objective, shown = recorded(loss)
    found = run(objective, num_steps=1, num_eot=2)
    proposal, stripes = shown[0][0], shown[2][0]
    assert torch.equal(found, torch.where(better.view(-1, 1, 1, 1), proposal, stripes))
    assert [draw for _, _, draw in shown] == [0, 1, 0, 1]


def test_the_mean_over_draws_decides_and_a_tie_changes_nothing():
    losses = iter([3.0, -1.0, 0.0, 1.0])  # means 1 and 1/2, though the incumbent wins the second draw
    objective, shown = recorded(lambda call: torch.full((4,), next(losses)))
    assert torch.equal(run(objective, num_steps=1, num_eot=2), shown[0][0])
    objective, shown = recorded(lambda call: torch.ones(4))
    assert torch.equal(run(objective, num_steps=1), shown[1][0])


def test_it_stays_inside_the_images_range():
    images = torch.cat([torch.zeros(2, 3, 9, 7), torch.ones(2, 3, 9, 7)])
    found = run(lambda x, ids, draw: x.sum(dim=(1, 2, 3)) * torch.tensor([1, -1, 1, -1]), 20, images=images)
    assert found.min() == 0 and found.max() == 1


# Queries of 10,000 after which the fraction of the image that a square covers halves (the authors' p_selection).
AUTHORS = {10: 1, 50: 2, 200: 4, 500: 8, 1000: 16, 2000: 32, 4000: 64, 6000: 128, 8000: 256, 10_000: 512}


@pytest.mark.parametrize(("query", "divisor"), AUTHORS.items())
def test_squares_shrink_by_the_authors_schedule(query, divisor):
    images = torch.zeros(1, 1, 100, 80)
    side = round((0.8 / divisor * 100 * 80) ** 0.5)
    assert square_side(query / 10_000, images) == max(1, min(side, 79))
    if query < 10_000:
        assert square_side((query + 1) / 10_000, images) < square_side(query / 10_000, images)


def test_a_square_is_never_larger_than_the_smaller_side_less_one_nor_empty():
    assert square_side(0, torch.zeros(1, 1, 4, 20)) == 3 and square_side(0, torch.zeros(1, 1, 20, 4)) == 3
    assert square_side(1, torch.zeros(1, 1, 4, 4)) == 1
