import pytest
import torch

from purify_engine.training.batches import augment, batch_indices, check_training_set, compact, pixels, seed_everything


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
        (torch.zeros(4, 1, 8, 8, dtype=torch.int16), None, r"float in \[0, 1\], or uint8"),
        (torch.full((4, 1, 8, 8), 2.0), None, r"in \[0, 1\]"),
        (torch.full((4, 1, 8, 8), torch.nan), None, r"in \[0, 1\]"),
        (torch.zeros(4, 1, 8, 8), torch.zeros(3), "labels must be one per image"),
    ],
    ids=["no channels", "empty", "colour", "integers", "out of range", "nan", "labels"],
)
def test_images_that_do_not_fit_are_refused_in_one_line(images, labels, message):
    with pytest.raises(ValueError, match=message) as error:
        check_training_set(images, labels, in_channels=1)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("count", [20, 64])
def test_the_order_is_shuffled_and_follows_from_the_seed(count):
    orders = [batch_indices(epoch, count, count, seed).tolist() for seed in (0, 1) for epoch in (0, 1, 2)]
    assert len({tuple(order) for order in [*orders, range(count)]}) == 7, "no two epochs, no two seeds, and not as it came"
    assert orders[:3] == [batch_indices(epoch, count, count, 0).tolist() for epoch in (0, 1, 2)]


def test_a_batch_that_spans_epochs_takes_the_end_of_one_and_the_start_of_the_next():
    laid_out = torch.cat([batch_indices(0, 10, 10, seed=0), batch_indices(1, 10, 10, seed=0)])
    spanning = torch.cat([batch_indices(step, 4, 10, seed=0) for step in range(5)])
    assert torch.equal(spanning, laid_out) and spanning.dtype == torch.int64


def test_the_order_leaves_the_callers_random_numbers_alone():
    before = torch.get_rng_state()
    batch_indices(3, 5, 11, seed=99)
    assert torch.equal(torch.get_rng_state(), before)


def drawn(seed, name):
    with torch.random.fork_rng(devices=[]):
        seed_everything(seed, name)
        return torch.rand(4).tolist()


def test_seed_and_name_both_decide_what_is_drawn():
    draws = [drawn(seed, name) for seed in (0, 1, 2**63 - 1) for name in ("step 0", "step 1", "initialisation")]
    assert len({tuple(draw) for draw in draws}) == 9
    assert drawn(1, "step 0") == draws[3]
    assert drawn(1, "1/step 1") != drawn(11, "/step 1"), "a seed and a name do not run into one another"


def test_without_augmentation_images_come_through_as_they_are():
    images = torch.rand(5, 2, 3, 4)
    assert augment(images, shift=0, flip=False) is images


def test_flip_and_shift_combine_and_leave_the_originals_alone():
    images = torch.rand(300, 2, 3, 4) + 0.1
    before = images.clone()
    both = augment(images, shift=1, flip=True)
    assert torch.equal(images, before)
    kinds = torch.stack([images, images.flip(-1)], 1).flatten(0, 1)  # plain and mirrored, in turn
    windows = torch.nn.functional.pad(kinds, (1, 1, 1, 1)).unfold(2, 3, 1).unfold(3, 4, 1).unflatten(0, (300, 2))
    matches = (both[:, None, :, None, None] == windows).flatten(5).all(-1).all(2)  # [N, kind, 3, 3]
    assert (matches.flatten(1).sum(1) == 1).all() and (matches.sum(0) > 3).all()


def test_the_largest_shift_is_the_one_asked_for():
    images = torch.ones(500, 1, 7, 7)
    shifted = augment(images, shift=2, flip=False)
    empty = (shifted.sum(3) == 0).sum((1, 2))  # rows that came in
    assert empty.unique().tolist() == [0, 1, 2] and shifted.dtype == images.dtype


def test_the_closed_unit_interval_and_matching_labels_are_accepted():
    check_training_set(torch.tensor([0.0, 1.0]).view(2, 1, 1, 1), torch.tensor([0, 1]), in_channels=1)
    check_training_set(torch.zeros(1, 3, 2, 2, dtype=torch.float16), None, in_channels=3)
    check_training_set(torch.full((1, 3, 2, 2), 255, dtype=torch.uint8), None, in_channels=3)


@pytest.mark.parametrize("value", [-1e-3, 1.001, -torch.inf, torch.inf])
def test_a_single_pixel_outside_the_unit_interval_is_refused(value):
    images = torch.zeros(3, 1, 2, 2)
    images[2, 0, 1, 1] = value
    with pytest.raises(ValueError, match=r"images must be in \[0, 1\], got \("):
        check_training_set(images, None, in_channels=1)


@pytest.mark.parametrize("labels", [torch.zeros(3, 1), torch.zeros(3, 2), torch.tensor(0)], ids=["column", "one-hot", "number"])
def test_labels_of_another_shape_are_refused(labels):
    with pytest.raises(ValueError, match=r"labels must be one per image, \[3\], got"):
        check_training_set(torch.zeros(3, 1, 2, 2), labels, in_channels=1)


def test_images_of_255ths_are_kept_as_bytes_and_come_back_the_same():
    levels = torch.arange(256).view(1, 1, 16, 16)
    for images in (levels / 255, levels.numpy() / 255):  # as PyTorch and as NumPy round them
        images = torch.as_tensor(images, dtype=torch.float32)
        assert compact(images).dtype == torch.uint8 and torch.equal(pixels(compact(images)), images)
    many = torch.randint(256, (9000, 1, 2, 2)) / 255
    assert torch.equal(pixels(compact(many)), many)


@pytest.mark.parametrize("images", [torch.full((5, 1, 1, 1), 0.5), torch.zeros(2, 1, 1, 1, dtype=torch.float64)], ids=str)
def test_images_that_bytes_would_change_are_kept_as_they_are(images):
    assert compact(images) is images and pixels(images) is images


def test_one_pixel_between_two_bytes_keeps_all_as_they_are():
    images = torch.zeros(9000, 1, 1, 1)
    images[8999] = 0.3
    assert compact(images) is images
