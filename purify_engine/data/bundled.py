"""The handwritten digits that scikit-learn bundles: 1797 real scans of 8 by 8 pixels, offline, and always split the same way."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch

from purify_engine.config import require
from purify_engine.types import Images, Labels

Split = Literal["train", "test"]

SPLIT_SEED = 0
TEST_EVERY = 5  # one scan in five is held out: 360 of 1797


def digits(split: Split) -> tuple[Images, Labels]:
    """(images float32 [N, 1, 8, 8] in [0, 1], labels int64 [N]); 1437 scans to train on, 360 held out.

    Source: UCI ML hand-written digits data, E. Alpaydin and C. Kaynak, 1998; pixels hold 0 to 16. Raises ValueError for another
    split, and ModuleNotFoundError where scikit-learn is missing.
    """
    require(split in ("train", "test"), "split", "one of train, test", split)
    pixels, labels = _bundled()
    chosen = split_indices(labels)[split]
    images = torch.from_numpy(pixels[chosen] / 16.0).to(torch.float32).reshape(-1, 1, 8, 8)
    return images, torch.from_numpy(labels[chosen]).to(torch.int64)


def split_indices(labels: np.ndarray) -> dict[str, np.ndarray]:
    """The fixed stratified split: sort by class, shuffle within a class, hold out every fifth.

    NumPy freezes the stream of RandomState, so the split is the same in every version of every library.
    """
    shuffled = np.random.RandomState(SPLIT_SEED).permutation(len(labels))
    by_class = np.lexsort((shuffled, labels))
    held_out = np.arange(len(labels)) % TEST_EVERY == 0
    return {"train": np.sort(by_class[~held_out]), "test": np.sort(by_class[held_out])}


def _bundled() -> tuple[np.ndarray, np.ndarray]:
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as missing:
        raise ModuleNotFoundError("the digits need scikit-learn: pip install 'purify-engine[digits]'") from missing
    bunch = load_digits()
    return bunch.data, bunch.target
