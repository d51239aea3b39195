import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from purify_engine.data import ImageShape, open_source, read_all
from purify_engine.data.items import ItemError
from tests.data.access import names, read

GREY = ImageShape(1, 8)


def picture(path, level=100, size=(8, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, level).save(path)


def test_a_folder_is_read_in_the_order_of_relative_paths(tmp_path):
    for name in ("b/2.png", "a/1.png", "b/10.png"):
        picture(tmp_path / name)
    source = open_source(tmp_path, GREY)
    assert names(source) == ("a/1.png", "b/10.png", "b/2.png")
    assert source.labels.tolist() == [0, 1, 1]


def test_other_files_are_skipped_and_named(tmp_path):
    picture(tmp_path / "a.png")
    (tmp_path / "notes.txt").write_text("hello")
    picture(tmp_path / ".hidden.png")
    source = open_source(tmp_path, GREY)
    assert names(source) == ("a.png",) and [entry.name for entry in source.skipped] == [".hidden.png", "notes.txt"]
    assert source.labels is None


def test_a_wrong_size_is_that_item_alone(tmp_path):
    picture(tmp_path / "a.png", size=(9, 8))
    with pytest.raises(ItemError, match="is 9x8 pixels, the network takes 8x8: resize it first"):
        read(open_source(tmp_path, GREY), 0)


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
@pytest.mark.parametrize("layout", [(3, 1, 8, 8), (3, 8, 8, 1), (3, 8, 8)], ids=str)
@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64"])
def test_arrays_of_any_layout_and_dtype_hold_the_same_images(suffix, layout, dtype, tmp_path):
    levels = np.arange(3 * 64, dtype=np.uint8).reshape(layout)
    array = levels if dtype == "uint8" else (levels / 255).astype(dtype)
    path = tmp_path / f"x{suffix}"
    np.save(path, array) if suffix == ".npy" else np.savez(path, images=array, labels=np.array([4, 5, 6]))
    source = open_source(path, GREY)
    assert torch.allclose(read_all(source).flatten(), torch.arange(3 * 64) / 255)
    assert suffix == ".npy" or source.labels.tolist() == [4, 5, 6]


def test_the_only_image_array_of_an_npz_needs_no_name(tmp_path):
    np.savez(tmp_path / "x.npz", x_test=np.zeros((2, 8, 8), np.uint8), y_test=np.zeros(2, np.int64))
    assert open_source(tmp_path / "x.npz", GREY).key == "x_test"


@pytest.mark.parametrize(
    ("value", "reason"),
    [(np.nan, "holds NaN or infinity"), (1.5, r"lies in \[0, 1.5\], must lie in \[0, 1\]: rescale it first")],
)
def test_a_poisoned_row_is_that_item_alone(value, reason, tmp_path):
    array = np.zeros((2, 1, 8, 8), np.float32)
    array[1, 0, 3, 3] = value
    np.save(tmp_path / "x.npy", array)
    source = open_source(tmp_path / "x.npy", GREY)
    assert read(source, 0).sum() == 0
    with pytest.raises(ItemError, match=reason):
        read(source, 1)


def missing(folder):
    return folder / "nowhere"


def empty_folder(folder):
    return folder


def other_suffix(folder):
    (folder / "x.csv").write_text("")
    return folder / "x.csv"


def empty_list(folder):
    (folder / "x.txt").write_text("\n")
    return folder / "x.txt"


def truncated(folder):
    np.save(folder / "x.npy", np.zeros((4, 8, 8)))
    (folder / "x.npy").write_bytes((folder / "x.npy").read_bytes()[:200])
    return folder / "x.npy"


def pickled(folder):
    (folder / "x.npy").write_bytes(pickle.dumps(print))
    return folder / "x.npy"


def object_array(folder):
    np.save(folder / "x.npy", np.array([{}, {}], dtype=object), allow_pickle=True)
    return folder / "x.npy"


def wrong_channels(folder):
    np.save(folder / "x.npy", np.zeros((2, 3, 8, 8), np.uint8))
    return folder / "x.npy"


def integers(folder):
    np.save(folder / "x.npy", np.zeros((2, 1, 8, 8), np.int64))
    return folder / "x.npy"


def no_rows(folder):
    np.save(folder / "x.npy", np.zeros((0, 1, 8, 8), np.uint8))
    return folder / "x.npy"


def two_arrays(folder):
    np.savez(folder / "x.npz", a=np.zeros((2, 8, 8)), b=np.zeros((2, 8, 8)))
    return folder / "x.npz"


def bad_labels(folder):
    np.savez(folder / "x.npz", images=np.zeros((2, 8, 8), np.uint8), labels=np.zeros(3, np.int64))
    return folder / "x.npz"


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (missing, "source must be an existing image folder, .npy or .npz file"),
        (empty_folder, "source must be a folder with images in it"),
        (other_suffix, "source must be an image folder, a .npy or a .npz file"),
        (empty_list, "source must be a list with the path of an image a line"),
        (truncated, "source must be a readable .npy or .npz file without pickles"),
        (pickled, "source must be a readable .npy or .npz file without pickles"),
        (object_array, "source must be a readable .npy or .npz file without pickles"),
        (wrong_channels, r"images must be \[N, 1, 8, 8\] or \[N, 8, 8, 1\], got \[2, 3, 8, 8\]"),
        (integers, "dtype must be uint8 or a float, got 'int64'"),
        (no_rows, "source must be a file with at least one image"),
        (two_arrays, "source must be a file with one array named images"),
        (bad_labels, r"labels must be integers \[2\], got 'int64 \[3\]'"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_bad_sources_are_refused_in_one_line(make, says, tmp_path):
    with pytest.raises(ValueError, match=says) as caught:
        open_source(make(tmp_path), GREY)
    assert "\n" not in str(caught.value)


def test_reading_everything_names_the_image_that_is_no_good(tmp_path):
    picture(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"")
    with pytest.raises(ValueError, match="every image must be readable, b.png: cannot read the image"):
        read_all(open_source(tmp_path, GREY))
