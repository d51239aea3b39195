"""Arrays of every layout, dtype and value: read, and written back as they were."""

import errno
import os

import numpy as np
import pytest
import torch
from PIL import Image

from purify_engine.data import ImageShape, open_sink, open_source, read_all
from purify_engine.data.items import ItemError
from tests.data.access import names, read, write

LEVELS = np.random.RandomState(0).randint(0, 256, 3 * 3 * 4 * 5).astype(np.uint8).reshape(3, 3, 4, 5)  # [N, C, H, W]


def in_layout(levels, layout):
    return {"NCHW": levels, "NHWC": levels.transpose(0, 2, 3, 1), "NHW": levels[:, 0]}[layout]


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
@pytest.mark.parametrize(("channels", "layout"), [(3, "NCHW"), (3, "NHWC"), (1, "NCHW"), (1, "NHWC"), (1, "NHW")])
@pytest.mark.parametrize("dtype", ["uint8", "float16", "float32", "float64"])
def test_what_is_read_and_written_again_is_the_same_array(suffix, channels, layout, dtype, tmp_path):
    levels = LEVELS[:, :channels]
    array = in_layout(levels if dtype == "uint8" else (levels / 255).astype(dtype), layout)
    path = tmp_path / f"in{suffix}"
    np.save(path, array) if suffix == ".npy" else np.savez(path, x=array, labels=np.array([3, 1, 2], np.uint8), note=np.ones(2))
    source = open_source(path, ImageShape(channels))
    assert names(source) == ("0", "1", "2") and source.skipped == ()
    sink = open_sink(source, tmp_path / f"out{suffix}")
    for index in (2, 0, 1):
        image = read(source, index)
        assert image.dtype == torch.float32 and image.is_contiguous()
        assert np.abs(image.numpy() - levels[index] / 255).max() < (1e-3 if dtype == "float16" else 1e-7)
    write(source, sink, {index: read(source, index) for index in range(3)})
    written = np.load(tmp_path / f"out{suffix}")
    assert suffix == ".npy" or (written["labels"].tolist() == [3, 1, 2] and set(written.files) == {"x", "labels", "note"})
    out = written if suffix == ".npy" else written["x"]
    assert out.dtype == array.dtype and out.shape == array.shape
    assert np.abs(out.astype(float) - array.astype(float)).max() <= (0 if dtype == "uint8" else 1e-7)


def test_levels_are_rounded_to_the_nearest(tmp_path):
    np.save(tmp_path / "in.npy", np.zeros((1, 1, 2), np.uint8))
    source = open_source(tmp_path / "in.npy", ImageShape(1))
    write(source, open_sink(source, tmp_path / "out.npy"), {0: torch.tensor([[[99.6, 200.4]]]) / 255})
    assert np.load(tmp_path / "out.npy").tolist() == [[[100, 200]]]


@pytest.mark.parametrize("kind", ["npy", "npz"])
def test_a_failure_while_rows_are_written_leaves_no_file_and_the_same_again_makes_it(kind, tmp_path, monkeypatch):
    path = tmp_path / f"in.{kind}"
    np.save(path, np.zeros((1, 2, 2), np.uint8)) if kind == "npy" else np.savez(path, images=np.zeros((1, 2, 2), np.uint8))
    source = open_source(path, ImageShape(1))
    sink = open_sink(source, tmp_path / f"out.{kind}")

    def half(descriptor, content, offset):
        if len(content) == 4:
            os.write(descriptor, content[:2])
            raise OSError(errno.ENOSPC, "No space left on device")
        return pwrite(descriptor, content, offset)

    pwrite = os.pwrite
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(os, "pwrite", half)
        write(source, sink, {0: torch.ones(1, 2, 2)})
    assert not sink.output.exists()
    write(source, sink, {0: torch.ones(1, 2, 2)})
    assert (np.load(sink.output) if kind == "npy" else np.load(sink.output)["images"]).tolist() == [[[255, 255]] * 2]
    assert not [entry for entry in tmp_path.iterdir() if entry.name.startswith(".")]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_a_value_that_is_no_number_is_refused(value, dtype, tmp_path):
    array = np.zeros((1, 2, 2), dtype)
    array[0, 1, 1] = value
    np.save(tmp_path / "in.npy", array)
    with pytest.raises(ItemError, match="^holds NaN or infinity$"):
        read(open_source(tmp_path / "in.npy", ImageShape(1)), 0)


@pytest.mark.parametrize(
    ("low", "high", "says"),
    [
        (0, 1, None),
        (-0.0, 1, None),
        (-1e-7, 1.0000001, None),
        (-1e-3, 1, r"\[-0.001, 1\]"),
        (0, 1.001, r"\[0, 1.001\]"),
        (-1, 1, r"\[-1, 1\]"),
        (0, 255, r"\[0, 255\]"),
    ],
)
def test_the_unit_interval_is_closed_and_nothing_beyond_its_rounding_is_taken(low, high, says, tmp_path):
    np.save(tmp_path / "in.npy", np.array([[[low, high], [0.5, 0.5]]], np.float32))
    source = open_source(tmp_path / "in.npy", ImageShape(1))
    if says is None:
        assert read(source, 0).flatten().tolist() == [max(low, 0), min(high, 1), 0.5, 0.5]
    else:
        cut = read(open_source(tmp_path / "in.npy", ImageShape(1, clip=True)), 0)
        assert cut.flatten().tolist() == [max(low, 0), min(high, 1), 0.5, 0.5]
        with pytest.raises(ItemError, match=f"^lies in {says}, must lie in"):
            read(source, 0)


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint16", "complex64", "U3"])
def test_other_dtypes_are_refused(dtype, tmp_path):
    np.save(tmp_path / "in.npy", np.zeros((1, 2, 2), dtype))
    with pytest.raises(ValueError, match="dtype must be uint8 or a float"):
        open_source(tmp_path / "in.npy", ImageShape(1))


@pytest.mark.parametrize(
    ("shape", "wanted", "layout"),
    [
        ((2, 3, 8, 8), ImageShape(3, 8), "NCHW"),
        ((2, 8, 8, 3), ImageShape(3, 8), "NHWC"),
        ((2, 3, 3, 3), ImageShape(3, 3), "NCHW"),  # both would do: channels first
        ((2, 3, 5, 7), ImageShape(3), "NCHW"),
        ((2, 5, 7, 3), ImageShape(3), "NHWC"),
        ((2, 5, 7), ImageShape(1), "NHW"),
        ((2, 8, 8), ImageShape(3, 8), None),
        ((2, 3, 8, 9), ImageShape(3, 8), None),
        ((2, 3, 9, 8), ImageShape(3, 8), None),
        ((2, 8, 9, 3), ImageShape(3, 8), None),
        ((2, 9, 8), ImageShape(1, 8), None),
        ((2, 1, 3, 8, 8), ImageShape(3, 8), None),
        ((2, 8), ImageShape(1, 8), None),
    ],
    ids=str,
)
def test_the_layout_follows_from_the_shape(shape, wanted, layout, tmp_path):
    np.savez(tmp_path / "in.npz", images=np.zeros(shape, np.uint8))
    if layout is None:
        with pytest.raises(ValueError, match=r"images must be \[N, .*, got \[2, "):
            open_source(tmp_path / "in.npz", wanted)
    else:
        assert open_source(tmp_path / "in.npz", wanted).layout == layout


def test_the_array_named_images_is_preferred_to_others_of_its_kind(tmp_path):
    np.savez(tmp_path / "in.npz", other=np.ones((2, 2, 2), np.uint8), images=np.zeros((2, 2, 2), np.uint8))
    source = open_source(tmp_path / "in.npz", ImageShape(1))
    assert source.key == "images" and read_all(source).sum() == 0


def test_arrays_of_other_dimensions_do_not_compete_with_the_only_one_of_images(tmp_path):
    np.savez(tmp_path / "in.npz", a=np.ones(4), b=np.ones((4, 4)), x=np.zeros((2, 2, 2), np.uint8), c=np.ones((1, 1, 1, 1, 1)))
    assert open_source(tmp_path / "in.npz", ImageShape(1)).key == "x"


@pytest.mark.parametrize("arrays", [{}, {"a": np.zeros(3)}, {"a": np.zeros((1, 1, 1, 1, 1))}], ids=["none", "flat", "deep"])
def test_a_file_without_images_is_refused_with_what_it_holds(arrays, tmp_path):
    np.savez(tmp_path / "in.npz", **arrays)
    holds = "a \\(.*\\)" if arrays else "nothing"
    with pytest.raises(ValueError, match=f"source must be a file with one array named images, got 'in.npz with {holds}'"):
        open_source(tmp_path / "in.npz", ImageShape(1))


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "uint64"])
def test_labels_of_any_integers_become_int64(dtype, tmp_path):
    np.savez(tmp_path / "in.npz", images=np.zeros((2, 2, 2), np.uint8), labels=np.array([5, 1], dtype))
    labels = open_source(tmp_path / "in.npz", ImageShape(1)).labels
    assert labels.dtype == np.int64 and labels.tolist() == [5, 1]


@pytest.mark.parametrize(
    "labels", [np.array([0.0, 1.0]), np.array([True, False]), np.array([[0], [1]])], ids=["float", "bool", "column"]
)
def test_labels_of_another_kind_are_refused(labels, tmp_path):
    np.savez(tmp_path / "in.npz", images=np.zeros((2, 2, 2), np.uint8), labels=labels)
    with pytest.raises(ValueError, match=r"labels must be integers \[2\], got"):
        open_source(tmp_path / "in.npz", ImageShape(1))


@pytest.mark.parametrize("channels", [0, 2, 4])
def test_a_folder_has_grey_or_colour_images_only(channels, tmp_path):
    with pytest.raises(ValueError, match=f"channels must be 1 or 3 for an image folder, got {channels}"):
        open_source(tmp_path, ImageShape(channels))


def test_a_network_of_any_size_takes_images_of_any_size(tmp_path):
    Image.new("L", (9, 7)).save(tmp_path / "a.png")
    assert read(open_source(tmp_path, ImageShape(1)), 0).shape == (1, 7, 9)
    for size, says in ((9, "is 9x7 pixels, the network takes 9x9"), (7, "is 9x7 pixels, the network takes 7x7")):
        with pytest.raises(ItemError, match=says):
            read(open_source(tmp_path, ImageShape(1, size)), 0)


def test_reading_everything_keeps_the_order_and_refuses_a_second_shape(tmp_path):
    for name, size in (("a", 8), ("b", 8), ("c", 9)):
        Image.new("L", (size, 8), 10 * ord(name) % 256).save(tmp_path / f"{name}.png")
    with pytest.raises(ValueError, match=r"c.png must be of the first image's shape \[1, 8, 8\], got \[1, 8, 9\]"):
        read_all(open_source(tmp_path, ImageShape(1)))
    (tmp_path / "c.png").unlink()
    images = read_all(open_source(tmp_path, ImageShape(1)))
    assert (images[:, 0, 0, 0] * 255).tolist() == pytest.approx([10 * ord("a") % 256, 10 * ord("b") % 256])


def test_a_pickle_is_refused_in_words_that_say_so(tmp_path):
    np.save(tmp_path / "in.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="pickles are never loaded"):
        open_source(tmp_path / "in.npy", ImageShape(1))
