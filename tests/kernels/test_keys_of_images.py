"""One key for each image of a batch, in Triton: every image gets the noise that it gets alone with its key, to the bit."""

from __future__ import annotations

import pytest
import torch

from purify_engine import ops
from purify_engine.testing.shapes import DRAWING
from tests.kernels.triton_runner import moved
from tests.ops.test_keys_of_images import BATCH, assert_each_image_as_alone, keyed


@pytest.mark.parametrize("op", DRAWING)
def test_an_image_gets_what_it_gets_alone_with_its_key(op):
    with ops.backend("triton"):
        assert_each_image_as_alone(*keyed(op, moved=moved))


def test_keys_may_lie_apart_or_be_the_same_memory():
    call, key, ids, _ = keyed("philox", moved=moved)
    with ops.backend("triton"):
        (apart,) = call(torch.stack((key, key + 1), dim=1)[:, 0], ids)
        assert torch.equal(apart, call(key, ids)[0])
        (repeated,) = call(key[:1].expand(BATCH), ids)
        assert torch.equal(repeated, call(key[0], ids)[0])
