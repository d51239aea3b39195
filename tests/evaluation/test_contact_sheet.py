"""What the contact sheet shows, pixel by pixel."""

import base64
import io

import numpy as np
import torch
from PIL import Image

from purify_engine.evaluation.contact_sheet import data_uri, exhibits
from purify_engine.evaluation.defences import Defence
from tests.evaluation.worlds import ToyPurifier, guided, linear_world


def pixels(picture):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(picture.uri.removeprefix("data:image/png;base64,")))))


def rounded(image):
    return (image.clamp(0, 1)[0] * 255).round().numpy()


def test_a_row_shows_input_attacked_purified_and_what_purification_changed():
    classifier, images, labels = linear_world(3)
    attacked = images + 0.02
    purifier = ToyPurifier(guided(1.0), spread=0.03)
    sheet = exhibits(Defence("d", classifier, purifier), images, attacked, labels)
    assert purifier.draws == [0] and len(sheet) == 3
    purified = purifier(attacked, ids=torch.arange(3), draw=0)
    for row, label, image, hit, washed in zip(sheet, labels, images, attacked, purified, strict=True):
        assert row.label == str(int(label))
        assert np.array_equal(pixels(row.input), rounded(image))
        assert np.array_equal(pixels(row.attacked), rounded(hit))
        assert np.array_equal(pixels(row.purified), rounded(washed))
        assert (row.difference.verdict, row.difference.right) == ("", None)
        red, blue = (pixels(row.difference)[..., channel].astype(int) for channel in (0, 2))
        change = (washed - hit)[0].numpy()
        assert (red > blue)[change > 0.1 * row.scale].all() and (red < blue)[change < -0.1 * row.scale].all()
    assert len({row.scale for row in sheet}) == 1


def test_each_stage_is_judged_by_the_classifier_against_the_label():
    classifier, images, labels = linear_world(4)
    wrong = labels.clone()
    wrong[1] = 1 - labels[1]
    sheet = exhibits(Defence("d", classifier), images, 1 - images, wrong)
    assert [row.input.verdict for row in sheet] == [str(int(label)) for label in labels]
    assert [row.input.right for row in sheet] == [True, False, True, True]
    assert [row.attacked.right for row in sheet] == [False, True, False, False]
    assert [row.purified for row in sheet] == [row.attacked for row in sheet]  # nothing purifies here


def test_nothing_is_recorded_for_gradients():
    classifier, images, labels = linear_world(2)
    grads = []

    class Watching(ToyPurifier):
        def forward(self, images, *, ids=None, draw=None):
            grads.append(torch.is_grad_enabled())
            return images

    exhibits(Defence("d", classifier, Watching(guided(1.0))), images.requires_grad_(), images, labels)
    assert grads == [False]


def test_grey_and_colour_are_png():
    grey, colour = data_uri(torch.rand(1, 3, 5)), data_uri(torch.rand(3, 4, 5))
    for uri, mode, size in ((grey, "L", (5, 3)), (colour, "RGB", (5, 4))):
        image = Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,"))))
        assert (image.format, image.mode, image.size) == ("PNG", mode, size)
