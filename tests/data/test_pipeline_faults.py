"""What the pipeline does when things go wrong, and how far it reads ahead."""

import json
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from purify_engine.config import OfflineConfig
from purify_engine.data import (
    ImageShape,
    Item,
    ItemError,
    ItemFailure,
    PurificationSummary,
    Skipped,
    open_sink,
    open_source,
    purify_dataset,
)
from purify_engine.data.items import parts_of

GREY = ImageShape(1, 8)


def array_source(folder, count):
    np.save(folder / "in.npy", np.full((count, 8, 8), 0.5, np.float32))
    return open_source(folder / "in.npy", GREY)


def through(purifier, source, folder, **options):
    sink = open_sink(source, folder / "out.npy")
    return purify_dataset(purifier, source, sink, config=OfflineConfig(**options)), np.load(folder / "out.npy")


class Spoil(torch.nn.Module):
    """Puts `value` into one pixel of image 1."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, images, *, ids):
        out = images.clone()
        out[ids == 1, 0, -1, -1] = self.value
        return out


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_result_that_is_no_number_fails_alone_and_is_not_written(value, tmp_path):
    summary, out = through(Spoil(value), array_source(tmp_path, 3), tmp_path)
    assert summary.failed == (ItemFailure(1, "1", "the purified image holds NaN or infinity"),)
    assert summary.ok == 2 and not out[1].any() and (out[[0, 2]] == 0.5).all()


def test_where_every_image_of_a_batch_is_bad_the_purifier_is_not_asked(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / f"{name}.png").write_bytes(b"")
    Image.new("L", (8, 8), 51).save(tmp_path / "in" / "d.png")
    asked, told = [], []

    class Note(torch.nn.Module):
        def forward(self, images, *, ids):
            asked.append((ids, images.dtype, tuple(images.shape)))
            return images

    source = open_source(tmp_path / "in", GREY)
    sink = open_sink(source, tmp_path / "out")
    how = OfflineConfig(batch_size=2)
    summary = purify_dataset(Note(), source, sink, config=how, told=lambda event, **facts: told.append((event, facts)))
    assert [(ids.tolist(), ids.dtype, *rest) for ids, *rest in asked] == [([3], torch.int64, torch.float32, (1, 1, 8, 8))]
    assert [facts["ok"] for event, facts in told if event == "item"] == [False, False, False, True]
    assert [failure.name for failure in summary.failed] == ["a.png", "b.png", "c.png"] and summary.ok == 1
    listed = [json.loads(line) for line in (tmp_path / "out" / "failed.jsonl").read_text().splitlines()]
    assert [entry["id"] for entry in listed] == [0, 1, 2] and set(listed[0]) == {"id", "name", "reason"}
    assert all(entry["reason"].startswith("cannot read the image") for entry in listed)


def test_without_failures_the_list_of_them_is_there_and_empty(tmp_path):
    through(Spoil(0.5), array_source(tmp_path, 2), tmp_path)
    assert (tmp_path / "out.failed.jsonl").read_text() == ""


def test_a_fault_of_the_purifier_stops_the_run(tmp_path):
    class Broken(torch.nn.Module):
        def forward(self, images, *, ids):
            raise RuntimeError("a fault of its own")

    with pytest.raises(RuntimeError, match="a fault of its own"):
        through(Broken(), array_source(tmp_path, 2), tmp_path)
    assert not (tmp_path / "out.npy").exists() and not (tmp_path / "out.failed.jsonl").exists()


class Counted:
    """A source that notes what is decoded; item `broken` raises what is no ItemError."""

    kind, root, shape, classes, labels = "counted", Path("counted"), ImageShape(1), None, None
    skipped = (Skipped("notes.txt", "no image"),)

    def __init__(self, count, broken=None):
        self.count, self.seen, self.broken = count, [], broken

    def __len__(self):
        return self.count

    def name(self, id):
        return str(id)

    def parts(self, size):
        return parts_of(self.count, size)

    def items(self, part):
        return (Item(id, str(id), b"") for id in part.ids)

    def decode(self, item):
        self.seen.append(item.id)
        if item.id == self.broken:
            raise KeyError("a fault of the program")
        return np.full((1, 1, 1), item.id / 10, np.float32)

    def fingerprint(self):
        return {"items": self.count}


class Kept:
    """A sink that keeps what it gets, and in which order."""

    def __init__(self, folder):
        self.folder, self.output, self.events = folder, folder / "output", []

    def prepare(self):
        self.events.append("prepared")

    def encode(self, item, image):
        return float(image.mean())

    def write(self, part, outcomes):
        self.events += [(outcome.item.id, outcome.encoded) for outcome in outcomes]
        return [], []

    def assemble(self, parts, failed, written):
        assert not self.record("failed.jsonl").exists(), "the list of failures is written when all else is"
        self.events.append("assembled")
        return []

    def record(self, name):
        return self.folder / name


def test_images_are_decoded_while_others_are_purified_and_never_far_ahead(tmp_path):
    count, ahead = 40, 2 * 4 + 2  # two parts and a batch: a large data set would fill the memory
    source, sink = Counted(count), Kept(tmp_path)

    class Slow(torch.nn.Module):
        def forward(self, images, *, ids):
            last = int(ids.max())
            deadline = time.monotonic() + 30
            while len(source.seen) < min(last + 3, count):  # this batch and the next; without reading ahead this never comes
                assert time.monotonic() < deadline, "the next batch is not read ahead"
                time.sleep(0.001)
            time.sleep(0.005)
            assert max(source.seen) <= last + ahead
            return images

    summary = purify_dataset(Slow(), source, sink, config=OfflineConfig(batch_size=2, part_size=4))
    images = [(index, pytest.approx(index / 10 if index <= 10 else 1)) for index in range(count)]
    assert sink.events == ["prepared", *images, "assembled"]
    assert sorted(source.seen) == list(range(count)) and summary.skipped == source.skipped and summary.ok == count


def test_a_fault_that_is_not_the_items_is_raised(tmp_path):
    with pytest.raises(KeyError, match="a fault of the program"):
        purify_dataset(Spoil(0.0), Counted(3, broken=2), Kept(tmp_path))


def test_images_go_where_the_purifiers_buffers_are(tmp_path):
    class Elsewhere(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("table", torch.zeros(1, device="meta"))

        def forward(self, images, *, ids):
            assert images.device.type == ids.device.type == "meta"
            return torch.zeros(len(images), 1, 1, 1)

    assert purify_dataset(Elsewhere(), Counted(2), Kept(tmp_path)).ok == 2


def test_large_images_are_refused_by_us_and_without_pillows_warning(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "in" / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)  # 64 pixels: Pillow warns, and up to twice as many it goes on
    source = open_source(tmp_path / "in", GREY)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        assert purify_dataset(Spoil(0.0), source, Kept(tmp_path)).ok == 1
    assert not warned


def test_other_warnings_come_through(tmp_path):
    class Warns(Counted):
        def decode(self, item):
            warnings.warn("this format is old", UserWarning, stacklevel=1)
            return super().decode(item)

    with pytest.warns(UserWarning, match="this format is old"):
        purify_dataset(Spoil(0.0), Warns(1), Kept(tmp_path))


def test_a_summary_counts_what_became_of_every_input():
    failed = (ItemFailure(1, "b", "broken"), ItemFailure(2, "c", "broken"))
    summary = PurificationSummary(total=9, ok=6, failed=failed, skipped=(Skipped("x", "y"),), seconds=1.50049, ok_now=3)
    assert summary.images_per_second == 3 / 1.50049
    assert summary.as_record() == {
        "ok": 6, "failed": 2, "skipped": 1, "left": 1, "seconds": 1.5, "images_per_second": 1.999,
    }  # fmt: skip
    assert PurificationSummary(0, 0, (), (), 0.0, 0).images_per_second == 0


def test_the_time_is_that_of_the_whole_run(tmp_path):
    class Slow(torch.nn.Module):
        def forward(self, images, *, ids):
            time.sleep(0.05)
            return images

    began = time.perf_counter()
    summary = purify_dataset(Slow(), Counted(2), Kept(tmp_path), config=OfflineConfig(batch_size=1))
    assert 0.1 <= summary.seconds <= time.perf_counter() - began


def test_an_item_error_says_why():
    assert isinstance(ItemError("why"), ValueError) and str(ItemError("why")) == "why"
