"""A folder of good images among things that fight back: all good ones are purified, and every other one is explained."""

import errno
import json
import os
import sys

import numpy as np
import pytest
from PIL import Image

from purify_engine.data import ImageShape, ItemError, open_sink, open_source
from purify_engine.data.planning import plan
from purify_engine.data.run import run
from purify_engine.data.sources.folder import FolderSource
from tests.data.access import item_of
from tests.data.hostile_folder import FORBIDDEN, SIDE, forbid, good, hostile

GREY = ImageShape(1, SIDE)


class Invert:
    """A purifier without torch."""

    def start(self, images, ids):
        return images

    def finish(self, started):
        return 1 - (started / np.float32(255) if started.dtype == np.uint8 else started)

    def is_out_of_memory(self, error):
        return False

    def identity(self):
        return {"purifier": "invert"}


def records(path):
    return [json.loads(line) for line in path.read_text(encoding="ascii").splitlines()]


def test_every_good_image_is_purified_and_every_other_thing_is_explained(tmp_path, monkeypatch):
    levels = good(tmp_path / "in", 60)
    hostiles = hostile(tmp_path / "in")
    forbid(monkeypatch, *FORBIDDEN)
    source = open_source(tmp_path / "in", GREY)
    assert plan(Invert(), source, open_sink(source, tmp_path / "out")).left == len(source)
    summary = run(Invert(), source, open_sink(source, tmp_path / "out"))
    assert hostiles == 50 and summary.ok == 60 + 1  # the image whose name another one would have had
    assert summary.sizes == {"8x8": summary.ok}
    explained = [*records(tmp_path / "out" / "failed.jsonl"), *records(tmp_path / "out" / "skipped.jsonl")]
    assert len(explained) == hostiles == len({entry["name"] for entry in explained})
    assert {entry["name"].split("/")[0] for entry in explained} == {"hostile", "report.html"}
    assert all(entry["reason"] and "\n" not in entry["reason"] and str(tmp_path) not in entry["reason"] for entry in explained)
    assert source.classes == (*(f"class {index}" for index in range(5)), "hostile", "report.html")
    written = {path.relative_to(tmp_path / "out").as_posix(): path for path in (tmp_path / "out").rglob("*.png")}
    named = {name if name.endswith(".png") else f"{name}.png": level for name, level in levels.items()}
    assert set(written) == {*named, "hostile/clash.jpg.png"}
    for name, level in named.items():
        with Image.open(written[name]) as picture:
            assert picture.getextrema() == (255 - level, 255 - level), name


def test_images_of_several_depths_and_names_without_a_place_are_planned(tmp_path):
    (tmp_path / "in").mkdir()
    for name, depth in (("a.jpg", np.uint8), ("a.jpg.png", np.uint16), ("b.png", np.uint8)):
        Image.fromarray(np.full((SIDE, SIDE), 250, depth)).save(tmp_path / "in" / name, "PNG")

    class Strict(Invert):
        def start(self, images, ids):
            assert images.dtype == np.uint8 or images.max() <= 1
            return images

    source = open_source(tmp_path / "in", GREY)
    planned = plan(Strict(), source, open_sink(source, tmp_path / "out"))
    assert (planned.sampled, planned.unreadable, planned.sizes) == (3, 0, {"8x8": 3}) and planned.disk_bytes > 0
    assert run(Strict(), source, open_sink(source, tmp_path / "out")).ok == 2


def test_names_of_any_bytes_survive_records_and_are_found_again(tmp_path):
    levels = good(tmp_path / "in", 10)
    for name in levels:
        (tmp_path / "in" / name).write_bytes(b"broken")
    source = open_source(tmp_path / "in", GREY)
    assert run(Invert(), source, open_sink(source, tmp_path / "out")).ok == 0
    listed = records(tmp_path / "out" / "failed.jsonl")
    assert [entry["name"] for entry in listed] == sorted(levels)
    assert all((tmp_path / "in" / entry["name"]).read_bytes() == b"broken" for entry in listed)
    assert not list((tmp_path / "out").rglob("*.png"))


def test_a_folder_that_cannot_be_read_is_one_item_that_fails(tmp_path, monkeypatch):
    good(tmp_path / "in", 3)
    (tmp_path / "in" / "class 1" / "secret").mkdir()
    forbid(monkeypatch, "secret")
    source = FolderSource(tmp_path / "in", GREY)
    (name,) = [source.name(id) for id in range(len(source)) if source.name(id).endswith("/")]
    assert name == "class 1/secret/" and source.labels.tolist() == [0, 1, 1, 2]
    with pytest.raises(ItemError, match="^the folder cannot be read: Permission denied$"):
        source.decode(item_of(source, list(source.names).index(name)))


def test_a_root_that_cannot_be_read_is_the_users_to_mend(tmp_path, monkeypatch):
    good(tmp_path / "in", 1)
    forbid(monkeypatch, "in")
    with pytest.raises(PermissionError):
        FolderSource(tmp_path / "in", GREY)


def test_links_to_files_are_followed_and_links_to_folders_are_not(tmp_path):
    good(tmp_path / "elsewhere", 5)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").symlink_to(tmp_path / "elsewhere" / "class 0" / "plain 0.png")
    (tmp_path / "in" / "folder").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "in" / "up").symlink_to("..", target_is_directory=True)
    source = FolderSource(tmp_path / "in", GREY)
    assert list(source.names) == ["a.png"]
    assert [tuple(entry) for entry in source.skipped] == [
        (name, "a link to a folder, which is not followed") for name in ("folder", "up")
    ]
    assert source.decode(next(source.items(source.parts(1)[0]))).shape == (1, SIDE, SIDE)


def test_where_everything_is_skipped_the_refusal_says_why(tmp_path):
    (tmp_path / "notes.txt").touch()
    says = "with 1 other things in it, such as .*notes.txt.*: its name does not end as an image.*s does"
    with pytest.raises(ValueError, match=says):
        FolderSource(tmp_path, GREY)


def test_folders_deeper_than_calls_are_walked(tmp_path):
    class Deep(FolderSource):
        def _entries(self, folder):
            return [(f"{folder}d/", None)] if folder.count("/") < 2 * sys.getrecursionlimit() else [(f"{folder}a.png", None)]

    assert list(Deep(tmp_path, GREY).names) == ["d/" * 2 * sys.getrecursionlimit() + "a.png"]


def test_paths_come_in_the_order_of_their_whole_names(tmp_path):
    names = ["a/1.png", "a.png", "a-b/1.png", "a!/1.png", "a/b/2.png", "a/b.png", "A.png", "ä.png", os.fsdecode(b"\xff.png")]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert list(FolderSource(tmp_path, GREY).names) == sorted(names)


def test_other_names_are_another_source_and_a_mended_image_is_not(tmp_path):
    good(tmp_path, 3)
    before = FolderSource(tmp_path, GREY).fingerprint()
    path = tmp_path / "class 0" / "plain 0.png"
    path.write_bytes(path.read_bytes() + b"!")
    assert FolderSource(tmp_path, GREY).fingerprint() == before
    path.rename(path.with_name("other.png"))
    renamed = FolderSource(tmp_path, GREY).fingerprint()
    assert [key for key in before if before[key] != renamed[key]] == ["names"]


@pytest.mark.parametrize("number", ["ENOSPC", "EIO", "EDQUOT", "EROFS", "EFBIG", "EACCES", "EMFILE"])
def test_what_concerns_every_file_ends_the_run_and_a_bad_name_costs_one_image(number, tmp_path, monkeypatch):
    good(tmp_path / "in", 3)
    source = open_source(tmp_path / "in", GREY)
    replaced, codes = os.replace, iter([errno.ENAMETOOLONG, getattr(errno, number)])

    def fail(self, target):
        if target.suffix == ".png" and (code := next(codes, None)):
            raise OSError(code, os.strerror(code), str(target))
        return replaced(self, target)

    monkeypatch.setattr("pathlib.Path.replace", fail)
    with pytest.raises(OSError, match=os.strerror(getattr(errno, number))):
        run(Invert(), source, open_sink(source, tmp_path / "out"))
    monkeypatch.undo()
    assert run(Invert(), source, open_sink(source, tmp_path / "out")).ok == 3


def test_an_image_that_fails_at_last_leaves_nothing_of_an_earlier_try(tmp_path):
    good(tmp_path / "in", 3)
    source = open_source(tmp_path / "in", GREY)
    sink = open_sink(source, tmp_path / "out")
    run(Invert(), source, sink)
    (part,), (gone, *rest) = source.parts(9), source.items(source.parts(9)[0])
    white = np.ones((1, SIDE, SIDE), np.float32)
    written, failed = sink.write(part, [(gone, ItemError("gone")), *((item, sink.encode(item, white)) for item in rest)])
    assert [item.id for item, _ in failed] == [0] and len(written) == 2 == len(list((tmp_path / "out").rglob("*.png")))
