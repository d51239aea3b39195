"""Hostile tar archives: each thing that is wrong is one record, a cut is always reported, and nothing lands anywhere else."""

from __future__ import annotations

import os
import tarfile

import pytest

from purify_engine.data.tar import CLOSING, TarError, header, members, open_tar, padding
from tests.data.crafted_tars import CRAFTED
from tests.data.mutated_tars import purify_mutated
from tests.data.tars import END, LONG, Watch, assert_nothing_else, contents, file, pax, png, purified, sample


@pytest.fixture(scope="module")
def watch():
    return Watch()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, watch):
    """One for all archives; waiting for the disk proves nothing here, and takes longer than the rest."""
    folder = tmp_path_factory.mktemp("sandbox").resolve()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        watch.folder = folder
        yield folder
        watch.folder = None


@pytest.mark.parametrize("name", CRAFTED)
def test_what_is_wrong_with_an_archive_is_one_record_and_the_rest_is_purified(name, folder, watch):
    crafted = CRAFTED[name]
    made = purified(folder, crafted.content)
    assert tuple(made.ok) == crafted.ok
    assert len(made.records) == len(crafted.records)
    for record, words in zip(made.records, crafted.records, strict=True):
        assert words in record
        assert record.isprintable()
    if made.ok:
        assert [member for member, _ in contents(made.output) if member.endswith(".png")] == list(made.ok)
    assert_nothing_else(folder, watch)


def test_an_archive_cut_at_any_block_is_reported_and_what_came_before_is_purified(folder):
    long = pax(path=LONG + b".png") + file(b"x", png()) + pax(path=LONG + b".cls") + file(b"x", b"1")
    pieces = [sample(b"a"), sample(b"b"), long]
    whole = b"".join(pieces) + END
    ends = [sum(map(len, pieces[: place + 1])) for place in range(3)]
    known = [ends[0] + 512, ends[1] + 1536, ends[2] + 512]  # when the next name, or the first closing block, is there
    assert purified(folder, whole).records == []
    for cut in [*range(0, len(whole), 512), *range(100, len(whole), 512)]:
        made = purified(folder, whole[:cut])
        assert len(made.records) == 1 and f"cut short at byte {cut}" in made.records[0]
        names = ["a.png", "b.png", f"{LONG.decode()}.png"]
        assert made.ok == [name for name, needed in zip(names, known, strict=True) if cut >= needed]


def test_mutated_archives_end_in_records(folder, watch):
    assert purify_mutated(range(100), folder, watch) > 15  # of them are cut


def test_an_archive_of_ours_is_read_by_python_and_by_us(tmp_path):
    names = ["a.png", "ü/ä.png", "\udcff.png", "d/" * 60 + "x" * 80 + ".cls", "n" * 300 + ".json", "new\nline.txt"]
    blocks = [header(name, 5) + b"12345" + padding(5) for name in names]
    path = tmp_path / "x.tar"
    path.write_bytes(b"".join(blocks) + CLOSING)
    with tarfile.open(path) as tar:
        assert [info.name for info in tar] == names
    opened, end = open_tar(path)
    with opened:
        assert [member.name for member in members(opened, end)] == names


@pytest.mark.parametrize("name", ["a.png", "x" * 100, "x" * 101, "d/" * 49 + "x", "d/" * 90 + "x", "\x7f", "\x80", "a/"])
@pytest.mark.parametrize("size", [0, 1, 511, 8**11 - 1, 8**11])
def test_headers_are_those_of_python(name, size):
    info = tarfile.TarInfo(name)
    info.size = size
    assert header(name, size) == info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def test_a_fifo_is_refused_without_waiting_for_it(tmp_path):
    os.mkfifo(tmp_path / "x.tar")
    with pytest.raises(ValueError, match="no regular file"):
        open_tar(tmp_path / "x.tar")


def test_the_error_says_at_which_byte(tmp_path):
    path = tmp_path / "x.tar"
    path.write_bytes(file(b"a.png", png())[:550])
    opened, end = open_tar(path)
    with opened, pytest.raises(TarError, match="cut short at byte 550: 38 of") as caught:
        list(members(opened, end))
    assert caught.value.offset == 550 and caught.value.member.name == "a.png"
