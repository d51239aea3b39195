"""An error of the disk says which file it is about, and how many bytes there were."""

import errno
import os
import re
import resource
from pathlib import Path

import pytest

from purify_engine import files
from purify_engine.files import append_json_line, make_durable, naming, write_folder, write_whole


def full(path):
    """Some bytes, then what a full disk says: no name of a file in it."""
    (path / "a" if path.is_dir() else path).write_bytes(b"12345")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_by_name(path):
    path.write_bytes(b"12345")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


@pytest.mark.parametrize("write", [full, full_by_name])
def test_a_full_disk_names_the_file_and_the_bytes_of_it(write, tmp_path):
    path = tmp_path / "images.npz"
    with pytest.raises(OSError) as caught:
        write_whole(path, write)
    assert (caught.value.filename, caught.value.errno) == (str(path), errno.ENOSPC)
    assert re.fullmatch(r"No space left on device after 5 bytes of it, \d+ bytes are free", caught.value.strerror)
    assert not list(tmp_path.iterdir())


def test_of_a_folder_the_folder_is_named(tmp_path):
    with pytest.raises(OSError, match="No space left") as caught:
        write_folder(tmp_path / "purifier", full)
    assert caught.value.filename == str(tmp_path / "purifier") and not list(tmp_path.iterdir())


def test_a_disk_that_cannot_be_waited_for_names_what_it_was_about(tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.touch()

    def fail(descriptor):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(files.os, "fsync", fail)
    for write in (lambda: make_durable([path]), lambda: append_json_line(path, 1), lambda: write_whole(path, Path.touch)):
        with pytest.raises(OSError) as caught:
            write()
        assert (caught.value.filename, caught.value.strerror) == (str(path), "Input/output error")


def test_an_error_about_another_file_keeps_its_name(tmp_path):
    with pytest.raises(FileNotFoundError) as caught, naming(tmp_path / "a", tmp_path / ".a.part"):
        (tmp_path / "other").read_bytes()
    assert caught.value.filename == str(tmp_path / "other")


def test_beyond_the_largest_file_that_is_allowed_the_bytes_are_named(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(OSError, match="after 100 bytes of it") as caught:
            write_whole(tmp_path / "a", lambda temporary: temporary.write_bytes(b"x" * 1000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.filename == str(tmp_path / "a") and not list(tmp_path.iterdir())
