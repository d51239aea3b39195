"""File and folder names of every kind: what is read, in which order, under which class, and where it is written."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from purify_engine.data import ImageShape, ItemError, open_sink, open_source
from purify_engine.data.pixels import decode
from tests.data.access import names, read, write

GREY = ImageShape(1, 8)


def pictures(root, *names):
    for level, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), level).save(root / name, format="PNG")
    return open_source(root, GREY)


def test_classes_are_numbered_by_the_folders_names_and_not_by_the_paths(tmp_path):
    source = pictures(tmp_path, "a/1.png", "a-b/1.png", "a b/1.png", "B/1.png", "a.c/1.png")
    assert names(source) == ("B/1.png", "a b/1.png", "a-b/1.png", "a.c/1.png", "a/1.png")
    classes = dict(zip((Path(name).parts[0] for name in names(source)), source.labels.tolist(), strict=True))
    assert classes == {"B": 0, "a": 1, "a b": 2, "a-b": 3, "a.c": 4}
    assert source.labels.dtype == np.int64


def test_the_first_folder_is_the_class_however_deep_the_image_lies(tmp_path):
    source = pictures(tmp_path, "cat/x/1.png", "cat/2.png", "dog/x/1.png")
    assert names(source) == ("cat/2.png", "cat/x/1.png", "dog/x/1.png") and source.labels.tolist() == [0, 0, 1]


def test_one_image_outside_the_class_folders_leaves_no_labels(tmp_path):
    assert pictures(tmp_path, "cat/1.png", "2.png").labels is None


def test_the_suffix_decides_in_either_case_and_only_at_the_end(tmp_path):
    source = pictures(tmp_path, "a.PNG", "b.Png", "c.JPG", "d.jpeg", "e.png.txt", "png", "f.tar.png", "g.npy")
    assert names(source) == ("a.PNG", "b.Png", "c.JPG", "d.jpeg", "f.tar.png")
    assert [entry.name for entry in source.skipped] == ["e.png.txt", "g.npy", "png"]


def test_hidden_files_and_folders_named_like_images_are_no_images(tmp_path):
    (tmp_path / "folder.png").mkdir()
    source = pictures(tmp_path, "x/.a.png", "x/.png", "x/b.png", "x/a..png")
    assert names(source) == ("x/a..png", "x/b.png")
    assert list(source.skipped) == [
        ("folder.png/", "an empty folder"), ("x/.a.png", "a hidden file"), ("x/.png", "a hidden file"),
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["é ü.png", "two  spaces.png", "percent%20.png", "quote'\".png", "x" * 251 + ".png"])
def test_a_name_of_any_letters_is_kept(name, tmp_path):
    source = pictures(tmp_path / "in", f"class/{name}")
    sink = open_sink(source, tmp_path / "out")
    write(source, sink, {0: torch.full((1, 8, 8), 7 / 255)})
    assert [path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.png")] == [f"class/{name}"]
    assert (decode(tmp_path / "out" / "class" / name, 1) == 7).all()


def test_every_image_goes_under_its_own_name(tmp_path):
    names = ("a.PNG", "b.png", "c.Jpg", "d/e.tiff", "d/e.png")
    source = pictures(tmp_path / "in", *names)
    sink = open_sink(source, tmp_path / "out")
    write(source, sink, {index: read(source, index) + 100 / 255 for index in range(len(source))})
    written = {path.relative_to(sink.output).as_posix(): decode(path, 1)[0, 0, 0] for path in sink.output.rglob("*.*")}
    assert written == {"a.PNG": 100, "b.png": 101, "c.Jpg.png": 102, "d/e.tiff.png": 103, "d/e.png": 104}


def test_of_two_images_for_one_file_the_one_whose_name_it_is_is_written(tmp_path):
    """Or a folder where a file goes: which one fails follows from the names alone, whichever is written first."""
    clashing = ("a.jpg", "a.jpg.png", "b.bmp", "b.bmp.png/x.png")
    source = pictures(tmp_path / "in", *clashing, "c.png", "c.png.png", "d.jpg.PNG", "d.jpg")
    sink = open_sink(source, tmp_path / "out")
    failed = []
    for item in source.items(source.parts(256)[0]):
        try:
            sink.encode(item, np.zeros((1, 8, 8), np.float32))
        except ItemError as reason:
            failed.append((item.name, str(reason)))
    says = "would be written to {}.png, where another image or folder goes: rename one of them"
    assert failed == [(name, says.format(name)) for name in ("a.jpg", "b.bmp")]


def test_an_output_reached_by_a_link_into_the_source_is_refused(tmp_path):
    source = pictures(tmp_path / "in", "a.png")
    (tmp_path / "link").symlink_to(tmp_path / "in", target_is_directory=True)
    with pytest.raises(ValueError, match="output must be a folder outside the source"):
        open_sink(source, tmp_path / "link" / "out")


def test_an_empty_folder_and_one_that_does_not_exist_yet_are_taken(tmp_path):
    source = pictures(tmp_path / "in", "a.png")
    (tmp_path / "inner").mkdir()  # exists, and is empty
    for output in (tmp_path / "inner", tmp_path / "deep" / "er"):
        write(source, open_sink(source, output), {})
        assert output.is_dir()


def test_a_file_where_the_folder_should_go_is_refused(tmp_path):
    source = pictures(tmp_path / "in", "a.png")
    (tmp_path / "out").touch()
    with pytest.raises(ValueError, match="output must be a folder, as the source is one"):
        open_sink(source, tmp_path / "out")


@pytest.mark.parametrize(
    ("output", "record"),
    [("out.npy", "out.run.json"), ("out.v2.npy", "out.v2.run.json"), ("deep/out.npy", "deep/out.run.json")],
)
def test_an_arrays_records_are_named_after_it(output, record, tmp_path):
    np.save(tmp_path / "in.npy", np.zeros((2, 8, 8), np.uint8))
    assert open_sink(open_source(tmp_path / "in.npy", GREY), tmp_path / output).record("run.json") == tmp_path / record


def test_an_array_is_written_exactly_where_it_was_asked_for(tmp_path):
    np.save(tmp_path / "in.npy", np.zeros((2, 8, 8), np.uint8))
    source = open_source(tmp_path / "in.npy", GREY)
    write(source, open_sink(source, tmp_path / ".out.v2.npy"), {0: torch.zeros(1, 8, 8)})
    assert np.load(tmp_path / ".out.v2.npy").shape == (2, 8, 8)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.v2.npy", "in.npy"]
