import hashlib
import sys

import numpy as np
import pytest
import torch

from purify_engine.data import digits
from purify_engine.data.bundled import split_indices

pytest.importorskip("sklearn")


def test_the_split_is_the_same_everywhere():
    images, labels = digits("test")
    found = hashlib.sha256((images * 16).to(torch.uint8).numpy().tobytes() + labels.numpy().tobytes()).hexdigest()
    assert found[:16] == "11610b8fec7cf2d1"


def test_the_training_half_is_the_same_everywhere():
    images, labels = digits("train")
    found = hashlib.sha256((images * 16).to(torch.uint8).numpy().tobytes() + labels.numpy().tobytes()).hexdigest()
    assert found[:16] == "1f0beba906f104cc"


def test_no_scan_is_in_both_halves_and_each_half_keeps_the_order_of_the_scans():
    parts = split_indices(np.arange(60) % 3)
    assert set(parts) == {"train", "test"} and not set(parts["train"]) & set(parts["test"])
    assert all((np.diff(part) > 0).all() for part in parts.values())
    assert not np.array_equal(parts["test"], np.arange(60)[::5]), "which scans are held out is drawn"


def test_both_halves_together_are_all_scans_once():
    parts = split_indices(np.repeat(np.arange(10), 180)[:1797])
    assert len(parts["train"]) == 1437 and len(parts["test"]) == 360
    assert sorted(np.concatenate([parts["train"], parts["test"]])) == list(range(1797))


def test_every_class_has_its_share_in_both_halves():
    counts = [digits(split)[1].bincount(minlength=10) for split in ("train", "test")]
    assert ((counts[1] / (counts[0] + counts[1]) - 0.2).abs() < 0.005).all()


def test_pixels_are_float32_nchw_in_the_unit_interval():
    images, labels = digits("train")
    assert images.shape == (1437, 1, 8, 8) and images.dtype == torch.float32 and labels.dtype == torch.int64
    assert images.min() == 0 and images.max() == 1


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="split must be one of train, test, got 'all'"):
        digits("all")


def test_missing_scikit_learn_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'purify-engine\[digits\]'"):
        digits("train")
