import json

import numpy as np
import pytest
import torch

from purify_engine import GuidedPurifier
from purify_engine.config import OfflineConfig
from purify_engine.data import ImageShape, open_sink, open_source, purify_dataset


class Halve(torch.nn.Module):
    """A purifier that is easy to check, and remembers what it was asked."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def forward(self, images, *, ids):
        assert not torch.is_grad_enabled()
        self.asked.append(ids.tolist())
        return torch.where(images > 0.9, torch.nan, images / 2)


def purified(tmp_path, purifier, array, name="out", **options):
    if not (tmp_path / "in.npy").exists():
        np.save(tmp_path / "in.npy", array)
    source = open_source(tmp_path / "in.npy", ImageShape(1, 8))
    sink = open_sink(source, tmp_path / f"{name}.npy")
    summary = purify_dataset(purifier, source, sink, config=OfflineConfig(**options))
    return summary, np.load(tmp_path / f"{name}.npy")


def levels(count):
    return np.linspace(0, 0.8, count * 64, dtype=np.float32).reshape(count, 1, 8, 8)


def test_every_image_is_purified_under_its_own_id(tmp_path):
    purifier = Halve()
    summary, out = purified(tmp_path, purifier, levels(7), batch_size=3)
    assert purifier.asked == [[0, 1, 2], [3, 4, 5], [6]]
    assert np.array_equal(out, levels(7) / 2)
    assert summary.ok == 7 and not summary.failed and summary.images_per_second > 0


def test_one_bad_image_costs_no_other(tmp_path):
    array = levels(5)
    array[1, 0, 0, 0] = np.inf  # cannot be read
    array[3, 0, 0, 0] = 1.0  # comes out as NaN
    summary, out = purified(tmp_path, Halve(), array, batch_size=4)
    assert summary.ok == 3 and np.array_equal(out[[0, 2, 4]], array[[0, 2, 4]] / 2) and not out[[1, 3]].any()
    listed = [json.loads(line) for line in (tmp_path / "out.failed.jsonl").read_text().splitlines()]
    assert listed == [
        {"id": 1, "name": "1", "reason": "holds NaN or infinity"},
        {"id": 3, "name": "3", "reason": "the purified image holds NaN or infinity"},
    ]


def test_a_run_tells_its_start_every_item_every_part_and_its_end(tmp_path):
    np.save(tmp_path / "in.npy", levels(5))
    source, told = open_source(tmp_path / "in.npy", ImageShape(1, 8)), []
    how = OfflineConfig(batch_size=2, part_size=3)
    sink = open_sink(source, tmp_path / "out.npy")
    purify_dataset(Halve(), source, sink, config=how, told=lambda event, **facts: told.append((event, facts)))
    assert told[0] == ("start", {"total": 5, "parts": 2, "parts_left": 2, "images_left": 5, "failed": 0})
    assert [facts["part"] for event, facts in told if event == "part"] == [0, 1]
    assert [facts for event, facts in told if event == "item"] == [{"ok": True}] * 5
    assert told[-1][0] == "end" and told[-1][1]["ok"] == 5


def test_the_batch_size_changes_nothing_beyond_rounding(tmp_path, small_purifier):
    purifier = GuidedPurifier.from_pretrained(small_purifier)
    outs = [purified(tmp_path, purifier, levels(11), f"by{size}", batch_size=size)[1] for size in (1, 4, 11)]
    assert np.abs(outs[0] - levels(11)).max() > 0.01
    assert max(np.abs(out - outs[0]).max() for out in outs) < 1e-5


def test_an_empty_batch_size_is_refused(tmp_path):
    with pytest.raises(ValueError, match="batch_size must be a whole number, at least 1, got 0"):
        purified(tmp_path, Halve(), levels(1), batch_size=0)
