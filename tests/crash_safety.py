"""What every function that writes a file must do; the tests of each part apply it to the writers of that part.

A writer is a function (an empty folder) -> (the file that it writes, a function that writes it).
"""

import errno
import os
import stat
from pathlib import Path

import pytest


def to(name, write):
    """The writer of `folder / "out" / name` by `write(path)`."""
    return lambda folder: (folder / "out" / name, lambda: write(folder / "out" / name))


def assert_durable_in_the_end(writer, folder, disk_calls, *, awaited_together=False):
    """The file gets its name by a rename in its folder; the disk has its content before, or all of it in the end."""
    path, write = writer(folder)
    write()
    (renamed,) = [call for call in disk_calls if call[0] == "rename" and call[2] == path]
    place = disk_calls.index(renamed)
    before, after = disk_calls[:place], disk_calls[place + 1 :]
    if awaited_together:
        assert after == [("fsync", path), ("fsync", path.parent)]
    else:
        assert before[-1] == ("fsync", renamed[1]) and after[0] == ("fsync", path.parent)
    assert renamed[1].parent == path.parent, "a rename to another file system copies"


def assert_failure_leaves_what_was_there(writer, folder, old, monkeypatch, *, kept=frozenset()):
    """Where the last step fails, `old` (None: no file) is all there is, but for hidden files `kept` to go on from."""
    path, write = writer(folder)
    path.parent.mkdir(exist_ok=True)
    if old is not None:
        path.write_text(old)

    def fail(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="No space left on device"):
        write()
    assert {entry.name for entry in path.parent.iterdir()} - kept == ({path.name} if old else set())
    assert old is None or path.read_text() == old


def assert_umask_decides_who_may_read(writer, folder):
    path, write = writer(folder)
    before = os.umask(0o027)
    try:
        write()
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
