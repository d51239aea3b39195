"""What the pipeline does when things go wrong, and how far it reads ahead."""

import json
import time
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from purify_engine.data import ImageShape, ItemFailure, PurificationSummary, open_sink, open_source, purify_dataset
from purify_engine.data.pixels import ItemError

GREY = ImageShape(1, 8)


def array_source(folder, count):
    np.save(folder / "in.npy", np.full((count, 8, 8), 0.5, np.float32))
    return open_source(folder / "in.npy", GREY)


def through(purifier, source, folder, **options):
    sink = open_sink(source, folder / "out.npy")
    return purify_dataset(purifier, source, sink, **options), np.load(folder / "out.npy")


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
    asked, reports = [], []

    class Note(torch.nn.Module):
        def forward(self, images, *, ids):
            asked.append((ids, images.dtype, tuple(images.shape)))
            return images

    source = open_source(tmp_path / "in", GREY)
    sink = open_sink(source, tmp_path / "out")
    summary = purify_dataset(Note(), source, sink, batch_size=2, progress=lambda *report: reports.append(report))
    assert [(ids.tolist(), ids.dtype, *rest) for ids, *rest in asked] == [([3], torch.int64, torch.float32, (1, 1, 8, 8))]
    assert reports == [(2, 4, 2), (4, 4, 3)]
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
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        through(Broken(), array_source(tmp_path, 2), tmp_path)
    assert not (tmp_path / "out.npy").exists() and not (tmp_path / "out.failed.jsonl").exists()


class Counted:
    """A source that notes what is read; item `broken` raises what is no ItemError."""

    skipped, labels = ("notes.txt",), None

    def __init__(self, count, broken=None):
        self.names, self.seen, self.broken = tuple(map(str, range(count))), [], broken

    def numbers(self, index):
        return 1

    def read(self, index):
        self.seen.append(index)
        if index == self.broken:
            raise KeyError("a fault of the program")
        return torch.full((1, 1, 1), index / 10)


class Kept:
    """A sink that keeps what it gets, and in which order."""

    def __init__(self, folder):
        self.folder, self.events = folder, []

    def write(self, index, image):
        self.events.append((index, float(image.mean())))

    def close(self):
        assert not self.record("failed.jsonl").exists(), "the list of failures is written when all else is"
        self.events.append("closed")

    def record(self, name):
        return self.folder / name


def test_the_next_batch_is_read_while_this_one_is_purified_and_no_further(tmp_path):
    source, sink = Counted(8), Kept(tmp_path)

    class Slow(torch.nn.Module):
        def forward(self, images, *, ids):
            last = int(ids.max())
            deadline = time.monotonic() + 30
            while len(source.seen) < min(last + 3, 8):  # this batch and the next; without reading ahead this never comes
                assert time.monotonic() < deadline, "the next batch is not read ahead"
                time.sleep(0.001)
            time.sleep(0.02)
            assert max(source.seen) <= last + 2, "more than one batch is read ahead: a large data set would fill the memory"
            return images

    summary = purify_dataset(Slow(), source, sink, batch_size=2)
    assert sink.events == [*((index, pytest.approx(index / 10)) for index in range(8)), "closed"]
    assert sorted(source.seen) == list(range(8)) and summary.skipped == ("notes.txt",) and summary.ok == 8


def test_a_fault_that_is_not_the_items_is_raised(tmp_path):
    with pytest.raises(KeyError, match="a fault of the program"):
        purify_dataset(Spoil(0.0), Counted(3, broken=2), Kept(tmp_path), batch_size=1)


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
        def read(self, index):
            warnings.warn("this format is old", UserWarning, stacklevel=1)
            return super().read(index)

    with pytest.warns(UserWarning, match="this format is old"):
        purify_dataset(Spoil(0.0), Warns(1), Kept(tmp_path))


def test_a_summary_counts_what_became_of_every_input():
    failed = (ItemFailure(1, "b", "broken"), ItemFailure(2, "c", "broken"))
    summary = PurificationSummary(ok=3, failed=failed, skipped=("x",), seconds=1.50049)
    assert summary.images_per_second == 3 / 1.50049
    assert summary.as_record() == {"ok": 3, "failed": 2, "skipped": 1, "seconds": 1.5, "images_per_second": 1.999}
    assert PurificationSummary(0, (), (), 0.0).images_per_second == 0


def test_the_time_is_that_of_the_whole_run(tmp_path):
    class Slow(torch.nn.Module):
        def forward(self, images, *, ids):
            time.sleep(0.05)
            return images

    began = time.perf_counter()
    summary = purify_dataset(Slow(), Counted(2), Kept(tmp_path), batch_size=1)
    assert 0.1 <= summary.seconds <= time.perf_counter() - began


def test_an_item_error_says_why():
    assert isinstance(ItemError("why"), ValueError) and str(ItemError("why")) == "why"
