"""Images and differences as they are shown: bit for bit, with the sign in the colour."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from purify_engine.pages.pictures import NEGATIVE, POSITIVE, ZERO, data_uri, scale_of, signed_uri, strongest, thumbnail


def pixels(uri):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,")))))


def test_a_difference_is_blue_below_zero_red_above_and_white_at_zero():
    shown = pixels(signed_uri(np.array([[[-0.2, 0.0, 0.2], [-0.9, -0.1, 0.9]]]), 0.2))
    assert [tuple(pixel) for pixel in shown[0]] == [NEGATIVE, ZERO, POSITIVE]
    assert [tuple(shown[1, 0]), tuple(shown[1, 2])] == [NEGATIVE, POSITIVE]  # beyond the scale: the colours of its ends
    halfway = (np.array(ZERO) + np.array(NEGATIVE)) / 2
    assert np.abs(shown[1, 1] - halfway).max() <= 0.5


def test_opposite_differences_are_equally_far_from_white():
    ends = np.abs(np.array([NEGATIVE, POSITIVE]) - np.array(ZERO)).max(axis=1)
    assert abs(ends[0] - ends[1]) <= 20


def test_of_a_colour_image_each_pixel_shows_the_channel_that_changed_most():
    change = np.array([0.1, -0.3, 0.2]).reshape(3, 1, 1)
    assert tuple(pixels(signed_uri(change, 0.3))[0, 0]) == NEGATIVE


def test_all_but_half_a_percent_of_the_pixels_lie_within_the_scale():
    changes = np.random.RandomState(0).randn(2, 3, 40, 50)
    scale = scale_of(changes)
    beyond = (np.abs(changes).max(axis=1) > scale).mean()
    assert 0.004 < beyond <= 0.005
    assert scale_of([]) == scale_of([np.zeros((1, 2, 2))]) == 1 / 255  # nothing is divided by zero


def test_values_outside_are_cut_and_what_is_no_number_is_black():
    shown = pixels(data_uri(np.array([[[-1.0, 0.2], [np.nan, 2.0]]])))
    assert shown.tolist() == [[0, 51], [0, 255]]


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 300, 200), (3, 129, 4000), (1, 1, 513)])
def test_large_images_become_small_ones_of_the_same_brightness(shape):
    image = np.full(shape, 0.25)
    small = thumbnail(image)
    assert max(small.shape[1:]) <= 128 and min(small.shape[1:]) >= 1 and np.allclose(small, 0.25)
    assert (small.shape == shape) == (max(shape) <= 128)


def test_a_small_one_is_the_mean_of_whole_blocks():
    image = np.arange(16.0).reshape(1, 4, 4)
    assert thumbnail(image, 2).tolist() == [[[2.5, 4.5], [10.5, 12.5]]]
    change = np.array([[[0.1, -0.3, 0.0, 0.0], [0.2, 0.1, 0.0, 0.4]]])
    assert strongest(change, 2).tolist() == [[[-0.3, 0.4]]] and np.array_equal(strongest(change, 4), change)
