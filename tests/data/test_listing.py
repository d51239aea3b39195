"""A text file with the path of an image a line."""

import os

import pytest

from purify_engine.data import ImageShape, ItemError, open_sink, open_source
from tests.data.access import names, read
from tests.data.hostile_folder import SIDE, good
from tests.data.test_hostile_folder import Invert, run

GREY = ImageShape(1, SIDE)


def listed(folder, *lines, end=b"\n"):
    path = folder / "list.txt"
    path.write_bytes(b"".join(os.fsencode(line) + end for line in lines))
    return open_source(path, GREY)


def test_paths_are_relative_to_the_list_and_keep_their_order_and_names(tmp_path):
    levels = good(tmp_path, 20)
    chosen = [name for name in reversed(levels) if "\n" not in name]
    source = listed(tmp_path, *chosen)
    assert names(source) == tuple(chosen) and source.kind == "list"
    assert [round(float(read(source, id).max()) * 255) for id in range(len(source))] == [levels[name] for name in chosen]
    assert source.classes == tuple(f"class {index}" for index in range(5))
    assert source.labels.tolist() == [int(name[6]) for name in chosen]
    assert run(Invert(), source, open_sink(source, tmp_path / "out")).ok == len(chosen)
    assert len(list((tmp_path / "out").rglob("*.png"))) == len(chosen)


def test_a_path_that_is_listed_twice_is_one_image(tmp_path):
    good(tmp_path, 2)
    one, two = "class 0/plain 0.png", "class 1/two  spaces 1.bmp"
    source = listed(tmp_path, one, two, "", f"./{one}", two)
    assert names(source) == (one, two)
    says = "line {} names an image that is listed before"
    assert [tuple(entry) for entry in source.skipped] == [(f"./{one}", says.format(4)), (two, says.format(5))]


def test_nothing_is_written_beside_the_output(tmp_path):
    levels = good(tmp_path / "data", 2)
    (tmp_path / "lists").mkdir()
    one, two = levels
    source = listed(tmp_path / "lists", f"../data/{one}", str(tmp_path / "data" / two), "a/../../data/gone.png", "/")
    below = str(tmp_path).lstrip("/")
    assert names(source) == (f"{below}/data/{one}", f"{below}/data/{two}", f"{below}/data/gone.png", "/")
    assert source.classes is None and source.labels is None
    summary = run(Invert(), source, open_sink(source, tmp_path / "out"))
    assert summary.ok == 2 and [failure.reason for failure in summary.failed] == [
        "cannot read the image: No such file or directory", "is a folder, not a file",
    ]  # fmt: skip
    assert len(list((tmp_path / "out" / below / "data").rglob("*.png"))) == 2


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_lists_of_windows_are_read(end, tmp_path):
    good(tmp_path, 2)
    source = listed(tmp_path, "\ufeffclass 0/plain 0.png", "class 1/two  spaces 1.bmp", end=end)
    assert names(source) == ("class 0/plain 0.png", "class 1/two  spaces 1.bmp") and read(source, 0).shape == (1, SIDE, SIDE)


@pytest.mark.parametrize("line", ["zero\0byte.png", "x" * 5000, "list.txt"])
def test_a_line_that_names_no_image_fails_alone(line, tmp_path):
    good(tmp_path, 1)
    source = listed(tmp_path, "class 0/plain 0.png", line)
    assert read(source, 0).shape == (1, SIDE, SIDE)
    with pytest.raises(ItemError) as caught:
        read(source, 1)
    assert "\n" not in str(caught.value) and str(tmp_path) not in str(caught.value)
