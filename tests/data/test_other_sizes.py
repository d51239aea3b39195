"""Images of several sizes, one image file, and values outside [0, 1]: through the pipeline, one by one and together."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from purify_engine.config import OfflineConfig
from purify_engine.data import ImageShape, batches, open_sink, open_source, purify_dataset
from tests.data.access import names, read

ANY = ImageShape(1)


class Halve(torch.nn.Module):
    """A purifier that is easy to check, and remembers what it was asked."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def forward(self, images, *, ids):
        self.asked.append((tuple(images.shape), ids.tolist()))
        return images / 2


def pictures(folder, *sizes):
    folder.mkdir()
    for index, (width, height) in enumerate(sizes):
        Image.new("L", (width, height), 40 * (index + 1)).save(folder / f"{index}.png")
    return open_source(folder, ANY)


def test_images_of_one_size_are_a_batch_and_each_keeps_its_id_and_size(tmp_path):
    purifier, sizes = Halve(), [(8, 8), (5, 9), (8, 8), (9, 5), (5, 9)]
    source = pictures(tmp_path / "in", *sizes)
    summary = purify_dataset(purifier, source, open_sink(source, tmp_path / "out"), config=OfflineConfig(batch_size=4))
    assert purifier.asked == [((2, 1, 8, 8), [0, 2]), ((2, 1, 9, 5), [1, 4]), ((1, 1, 5, 9), [3])]
    assert summary.ok == 5 and summary.sizes == {"8x8": 2, "5x9": 2, "9x5": 1}
    for index, size in enumerate(sizes):
        written = Image.open(tmp_path / "out" / f"{index}.png")
        assert written.size == size and set(np.asarray(written).flat) == {20 * (index + 1)}


def test_large_images_come_in_smaller_batches_whatever_they_come_in(tmp_path, monkeypatch):
    """Or the memory would have to hold `batch_size` photographs several times."""
    monkeypatch.setattr(batches, "MOST_NUMBERS", 128)
    purifier, sizes = Halve(), [(8, 8), (8, 8), (2, 2), (20, 10), (2, 2), (8, 8), (4, 4), (4, 4)]
    source = pictures(tmp_path / "in", *sizes)
    (tmp_path / "in" / "7.png").write_bytes(b"no image")
    assert purify_dataset(purifier, source, open_sink(source, tmp_path / "out"), config=OfflineConfig(batch_size=4)).ok == 7
    assert purifier.asked == [
        ((2, 1, 8, 8), [0, 1]), ((1, 1, 2, 2), [2]), ((1, 1, 10, 20), [3]),
        ((1, 1, 2, 2), [4]), ((1, 1, 8, 8), [5]), ((1, 1, 4, 4), [6]),
    ]  # fmt: skip
    purifier = Halve()
    np.save(tmp_path / "x.npy", np.zeros((3, 1, 8, 8), np.float32))
    source = open_source(tmp_path / "x.npy", ANY)
    purify_dataset(purifier, source, open_sink(source, tmp_path / "y.npy"))
    assert purifier.asked == [((2, 1, 8, 8), [0, 1]), ((1, 1, 8, 8), [2])]


def test_what_the_purifier_refuses_fails_alone_with_its_reason(tmp_path):
    shape = ImageShape(1, None, lambda height, width: "it is tall: crop it" if height > width else None)
    pictures(tmp_path / "in", (8, 8), (5, 9))
    source = open_source(tmp_path / "in", shape)
    summary = purify_dataset(Halve(), source, open_sink(source, tmp_path / "out"))
    assert summary.ok == 1 and [(f.name, f.reason) for f in summary.failed] == [("1.png", "is 5x9 pixels, it is tall: crop it")]


def test_an_array_is_refused_whole_with_the_reason_and_taken_where_its_last_axes_are(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((2, 9, 5), np.uint8))
    wide = ImageShape(1, None, lambda height, width: "it is tall: crop it" if height > width else None)
    with pytest.raises(ValueError, match=r"images must be \[N, 1, any, any\] or .*, got \[2, 9, 5\]; it is tall: crop it$"):
        open_source(tmp_path / "x.npy", wide)
    np.save(tmp_path / "y.npy", np.zeros((2, 5, 9, 1), np.uint8))
    assert open_source(tmp_path / "y.npy", wide).layout == "NHWC"


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_files_hold_what_is_in_the_range_whatever_comes_out(dtype, tmp_path):
    class Stretch(torch.nn.Module):
        def forward(self, images, *, ids):
            return 4 * images - 1

    levels = np.array([[[0, 51, 102, 255]]])
    np.save(tmp_path / "x.npy", levels.astype("uint8") if dtype == "uint8" else (levels / 255).astype(dtype))
    source = open_source(tmp_path / "x.npy", ANY)
    purify_dataset(Stretch(), source, open_sink(source, tmp_path / "out.npy"))
    expected = np.array([0, 0, 0.6, 1])
    written = np.load(tmp_path / "out.npy")[0, 0]
    assert np.allclose(written, expected * (255 if dtype == "uint8" else 1), atol=1e-6)
    Image.fromarray(levels[0].astype(np.uint8)).save(tmp_path / "x.png")
    source = open_source(tmp_path / "x.png", ANY)
    purify_dataset(Stretch(), source, open_sink(source, tmp_path / "y.png"))
    assert np.asarray(Image.open(tmp_path / "y.png")).tolist() == [[0, 0, 153, 255]]


@pytest.fixture
def photo(tmp_path):
    Image.new("L", (6, 4), 100).save(tmp_path / "photo.jpg")
    return open_source(tmp_path / "photo.jpg", ANY)


@pytest.mark.parametrize(
    ("output", "lies_at", "record"),
    [
        ("clean.png", "clean.png", "clean.run.json"),
        ("deep/er/clean.PNG", "deep/er/clean.PNG", "deep/er/clean.run.json"),
        ("folder", "folder/photo.jpg.png", "folder/photo.jpg.run.json"),
        ("there", "there/photo.jpg.png", "there/photo.jpg.run.json"),
        ("there.png", "there.png/photo.jpg.png", "there.png/photo.jpg.run.json"),
    ],
)
def test_one_image_becomes_one_png_file(output, lies_at, record, photo, tmp_path):
    for there in ("there", "there.png"):  # folders with something in them
        (tmp_path / there).mkdir()
        (tmp_path / there / "other.txt").write_text("")
    assert names(photo) == ("photo.jpg",) and photo.labels is None and photo.skipped == ()
    sink = open_sink(photo, tmp_path / output)
    summary = purify_dataset(Halve(), photo, sink)
    written = Image.open(tmp_path / lies_at)
    assert summary.ok == 1 and written.format == "PNG" and written.size == (6, 4) and set(np.asarray(written).flat) == {50}
    assert sink.record("run.json") == tmp_path / record
    sink.record("run.json").unlink()  # without it no run of ours put the image there
    with pytest.raises(ValueError, match="output must be a file that does not exist yet"):
        purify_dataset(Halve(), photo, open_sink(photo, tmp_path / output))


@pytest.mark.parametrize("output", ["clean.jpg", "notes.txt"])
def test_an_image_goes_to_no_file_of_another_kind(output, photo, tmp_path):
    (tmp_path / "notes.txt").write_text("kept")
    with pytest.raises(ValueError, match="output must be a .png file") as caught:
        open_sink(photo, tmp_path / output)
    assert "\n" not in str(caught.value) and (tmp_path / "notes.txt").read_text() == "kept"


def test_an_image_that_cannot_be_read_leaves_its_reason_and_no_image(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"<html>")
    source = open_source(tmp_path / "photo.jpg", ANY)
    assert purify_dataset(Halve(), source, open_sink(source, tmp_path / "clean.png")).ok == 0
    (failure,) = (tmp_path / "clean.failed.jsonl").read_text().splitlines()
    assert json.loads(failure)["name"] == "photo.jpg" and not (tmp_path / "clean.png").exists()


def test_an_image_file_is_read_in_one_or_three_channels(tmp_path):
    Image.new("RGB", (6, 4), (10, 20, 30)).save(tmp_path / "photo.png")
    assert read(open_source(tmp_path / "photo.png", ImageShape(3)), 0).mul(255).round()[:, 0, 0].tolist() == [10, 20, 30]
    with pytest.raises(ValueError, match="channels must be 1 or 3 for an image file, got 2"):
        open_source(tmp_path / "photo.png", ImageShape(2))
