import pytest
import torch

from purify_engine.training.batches import augment, batch_indices, check_training_set


@pytest.mark.parametrize("batch_size, count", [(4, 10), (10, 10), (7, 3)], ids=str)
def test_every_epoch_shows_every_image_once(batch_size, count):
    laid_out = torch.cat([batch_indices(step, batch_size, count, seed=3) for step in range(count)])
    for epoch in laid_out.view(-1, count):
        assert sorted(epoch.tolist()) == list(range(count))


def test_epochs_and_seeds_are_shuffled_differently():
    first, second = batch_indices(0, 50, 50, seed=0), batch_indices(1, 50, 50, seed=0)
    assert not torch.equal(first, second)
    assert not torch.equal(first, batch_indices(0, 50, 50, seed=1))


def test_a_step_does_not_depend_on_the_steps_before_it():
    assert torch.equal(batch_indices(5, 8, 30, seed=0), [batch_indices(k, 8, 30, seed=0) for k in range(6)][5])


def test_a_shift_moves_the_image_and_brings_in_zeros():
    images = torch.rand(200, 2, 5, 4) + 0.1
    allowed = torch.nn.functional.pad(images, (1, 1, 1, 1)).unfold(2, 5, 1).unfold(3, 4, 1)  # every window: [N, C, 3, 3, H, W]
    matches = (augment(images, shift=1, flip=False)[:, :, None, None] == allowed).flatten(4).all(-1).all(1)
    assert (matches.flatten(1).sum(1) == 1).all(), "an image is not a shift of itself"
    assert (matches.sum(0) > 0).all(), "a shift never happened"


def test_half_of_the_images_are_mirrored():
    images = torch.rand(400, 1, 2, 3)
    mirrored = (augment(images, shift=0, flip=True) == images.flip(-1)).flatten(1).all(1)
    assert 150 < mirrored.sum() < 250


@pytest.mark.parametrize(
    "images, labels, message",
    [
        (torch.zeros(4, 8, 8), None, "images must be"),
        (torch.zeros(0, 1, 8, 8), None, "N at least 1"),
        (torch.zeros(4, 3, 8, 8), None, "of 1 channels"),
        (torch.zeros(4, 1, 8, 8, dtype=torch.uint8), None, "divide uint8 by 255"),
        (torch.full((4, 1, 8, 8), 2.0), None, r"in \[0, 1\]"),
        (torch.full((4, 1, 8, 8), torch.nan), None, r"in \[0, 1\]"),
        (torch.zeros(4, 1, 8, 8), torch.zeros(3), "labels must be one per image"),
    ],
    ids=["no channels", "empty", "colour", "uint8", "out of range", "nan", "labels"],
)
def test_images_that_do_not_fit_are_refused_in_one_line(images, labels, message):
    with pytest.raises(ValueError, match=message) as error:
        check_training_set(images, labels, in_channels=1)
    assert "\n" not in str(error.value)
