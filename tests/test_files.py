"""A crash at any moment: readers see the old file or the whole new one, and no line that was written is lost."""

import errno
import fcntl
import io
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from purify_engine import files
from purify_engine.files import append_json_line, lock, make_durable, read_json_lines, unlock, write_new, write_text, write_whole


def test_the_content_is_on_the_disk_before_the_name_and_the_name_before_the_return(tmp_path, disk_calls):
    path = tmp_path / "folder" / "a.txt"
    write_whole(path, lambda temporary: (disk_calls.append(("write", temporary)), temporary.write_text("whole")))
    folder, (_, temporary), *rest = disk_calls
    assert folder == ("fsync", tmp_path), "where the folder's name is"
    assert rest == [("fsync", temporary), ("rename", temporary, path), ("fsync", path.parent)]
    assert path.read_text() == "whole" and temporary.parent == path.parent and temporary.name.startswith(".")


def test_what_need_not_be_durable_waits_for_no_disk_until_it_is_asked_to(tmp_path, disk_calls):
    paths = [tmp_path / name for name in ("a/1", "a/2", "b/1")]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        write_whole(path, Path.touch, durable=False)
    assert [name for name, *_ in disk_calls] == ["rename"] * 3
    disk_calls.clear()
    make_durable(iter(paths))
    assert disk_calls == [("fsync", path) for path in [*paths, tmp_path / "a", tmp_path / "b"]]


@pytest.mark.parametrize("durable", [True, False])
def test_bytes_are_written_whole_too(durable, tmp_path, disk_calls):
    path = tmp_path / "new" / "a.png"
    files.make_folder(path.parent)
    disk_calls.clear()
    files.write_bytes(path, b"whole", durable=durable)
    renamed = next(call for call in disk_calls if call[0] == "rename")
    before, after = [("fsync", renamed[1])] * durable, [("fsync", path.parent)] * durable
    assert disk_calls == [*before, renamed, *after] and renamed[2] == path and renamed[1].parent == path.parent
    assert path.read_bytes() == b"whole" and list(path.parent.iterdir()) == [path]
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~_umask()


def test_bytes_that_cannot_be_written_leave_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_text("old")
    monkeypatch.setattr(files, "_write_all", lambda file, content: file.write(content[:3]) and half(tmp_path / "other"))
    with pytest.raises(OSError, match="disk full"):
        files.write_bytes(path, b"new and longer")
    (tmp_path / "other").unlink()
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def _umask():
    umask = os.umask(0)
    os.umask(umask)
    return umask


def test_many_files_are_waited_for_at_once_and_before_their_folders(tmp_path, disk_calls):
    paths = [tmp_path / f"{number % 3}" / f"{number}" for number in range(40)]
    for path in paths:
        write_whole(path, Path.touch, durable=False)
    disk_calls.clear()
    make_durable(paths)
    assert sorted(disk_calls[:40]) == sorted(("fsync", path) for path in paths)
    assert disk_calls[40:] == [("fsync", tmp_path / name) for name in "012"]


def test_of_many_files_one_that_does_not_reach_the_disk_is_told(tmp_path, monkeypatch):
    paths = [tmp_path / f"{number}" for number in range(40)]
    for path in paths:
        path.touch()
    wait = files._wait_for_disk

    def failing(path):
        if path.name == "17":
            raise OSError(5, "Input/output error", str(path))
        wait(path)

    monkeypatch.setattr(files, "_wait_for_disk", failing)
    with pytest.raises(OSError, match="Input/output error.*17"):
        make_durable(paths)


def half(temporary):
    temporary.write_text("half of the n")
    raise OSError("disk full")


def half_and_away(temporary):
    temporary.unlink()  # as a library does that writes a file of its own and renames it
    raise KeyboardInterrupt


@pytest.mark.parametrize("write, error", [(half, OSError), (half_and_away, KeyboardInterrupt)])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(write, error, tmp_path):
    path = tmp_path / "unet.checkpoint"
    path.write_text("old")
    with pytest.raises(error):
        write_whole(path, write)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_disk_that_fails_leaves_the_old_file_and_nothing_else(failing, tmp_path, monkeypatch):
    def fail(*args):
        raise OSError("input/output error")

    path = tmp_path / "a"
    path.write_text("old")
    monkeypatch.setattr(os if failing == "fsync" else Path, failing, fail)
    with pytest.raises(OSError, match="input/output error"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_while_it_is_written_a_reader_sees_the_old_file(tmp_path):
    path = tmp_path / "a"
    path.write_text("old")

    def write(temporary):
        temporary.write_text("half")
        assert path.read_text() == "old"
        temporary.write_text("whole")

    write_whole(path, write)
    assert path.read_text() == "whole"


@pytest.mark.parametrize("umask, mode", [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)], ids=oct)
@pytest.mark.parametrize("private", [False, True], ids=["plain", "made private by a library"])
def test_the_umask_decides_who_may_read(umask, mode, private, tmp_path):
    def write(temporary):
        if private:
            temporary.unlink()
            os.close(os.open(temporary, os.O_CREAT | os.O_WRONLY, 0o600))

    before = os.umask(umask)
    try:
        write_whole(tmp_path / "a", write)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == mode


@pytest.mark.parametrize("name", ["x" * 255, "é" * 127, ".hidden", "no suffix", "a.tar.gz"])
def test_every_name_that_a_file_may_have_can_be_written(name, tmp_path):
    write_text(tmp_path / name, "text")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    path, both = tmp_path / "a", threading.Barrier(2)

    def write(temporary, text):
        temporary.write_text(text)
        both.wait()

    texts = ["one" * 1000, "other"]
    threads = [threading.Thread(target=write_whole, args=(path, lambda t, text=text: write(t, text))) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_text() in texts and list(tmp_path.iterdir()) == [path]


def test_text_is_utf8_wherever_it_is_written(tmp_path):
    path = str(tmp_path / "a")
    code = f"from pathlib import Path; from purify_engine.files import write_text; write_text(Path({path!r}), '\\xb5 \\xe9')"
    environment = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, cwd=Path(files.__file__).parent.parent)
    assert (tmp_path / "a").read_bytes() == "µ é".encode()


def test_lines_come_back_in_order(tmp_path):
    path, records = tmp_path / "folder" / "a.jsonl", [{"n": 1}, {"text": "two\nlines | µ \u2028"}, [3], None]
    for record in records:
        append_json_line(path, record)
    assert read_json_lines(path) == records
    assert path.read_text().count("\n") == len(records)


def test_a_line_is_on_the_disk_before_the_next_thing_happens(tmp_path, disk_calls):
    path = tmp_path / "a.jsonl"
    append_json_line(path, {"n": 1})
    assert disk_calls == [("fsync", path), ("fsync", tmp_path)], "its name, too"
    append_json_line(path, {"n": 2})
    assert disk_calls[2:] == [("fsync", path)]


@pytest.mark.parametrize("failing", ["write", "fsync"])
def test_a_line_that_cannot_be_written_whole_leaves_nothing(failing, tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    append_json_line(path, {"n": 1})
    before = path.read_bytes()

    def half(file, content):
        file.write(content[:4])
        raise OSError("No space left on device")

    def fail(descriptor):
        raise OSError("No space left on device")

    monkeypatch.setattr(*((files, "_write_all", half) if failing == "write" else (os, "fsync", fail)))
    with pytest.raises(OSError, match="No space left"):
        append_json_line(path, {"n": 2})
    assert path.read_bytes() == before


def test_a_line_is_written_whole_by_several_calls_if_need_be():
    class Stingy(io.BytesIO):
        def write(self, content):
            return super().write(content[:3])

    file = Stingy()
    files._write_all(file, b"0123456789")
    assert file.getvalue() == b"0123456789"


def test_a_lock_is_one_processs_and_goes_with_it(tmp_path):
    path = tmp_path / "lock"
    held = lock(path)
    assert held is not None and lock(path) is None
    unlock(path, held)
    assert not path.exists()
    code = f"import os, time; from pathlib import Path; from purify_engine.files import lock; lock(Path({str(path)!r})); "
    words = [sys.executable, "-c", code + "print('locked', flush=True); time.sleep(60)"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=Path(files.__file__).parent.parent) as other:
        assert other.stdout.readline() == "locked\n"
        assert lock(path) is None
        other.kill()
    again = lock(path)
    assert again is not None, "it was killed, and its lock with it"
    unlock(path, again)


def test_a_lock_that_was_removed_while_it_was_waited_for_is_made_again(tmp_path, monkeypatch):
    path, flock, removed = tmp_path / "lock", fcntl.flock, []

    def slow(descriptor, how):
        if not removed:
            removed.append(path.unlink())  # the one that had held it is done
        flock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", slow)
    held = lock(path)
    assert path.stat().st_ino == os.fstat(held).st_ino
    unlock(path, held)


def test_a_file_system_without_locks_is_told_of(tmp_path, monkeypatch):
    def refuse(descriptor, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.warns(UserWarning, match="cannot be locked, .* No locks available"):
        unlock(tmp_path / "lock", lock(tmp_path / "lock"))


FIRST, SECOND = {"n": 1}, '{"text": "two µ"}'.encode()


@pytest.mark.parametrize("kept", range(1, len(SECOND)))
def test_a_last_line_cut_anywhere_is_no_record_and_the_next_one_begins_afresh(kept, tmp_path, recwarn):
    path = tmp_path / "a.jsonl"
    append_json_line(path, FIRST)
    with path.open("ab") as file:
        file.write(SECOND[:kept])
    assert read_json_lines(path) == [FIRST] and not recwarn.list
    append_json_line(path, {"n": 3})
    with pytest.warns(UserWarning, match="line 2 of .*a.jsonl is no JSON and is left out"):
        assert read_json_lines(path) == [FIRST, {"n": 3}]


def test_a_last_line_that_lacks_its_newline_only_is_a_record(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"n": 1}\n{"n": 2}')
    assert read_json_lines(path) == [{"n": 1}, {"n": 2}]
    append_json_line(path, {"n": 3})
    assert read_json_lines(path) == [{"n": 1}, {"n": 2}, {"n": 3}]


def test_damage_in_the_middle_is_reported_by_its_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"n": 1}\n\n\xff\xfe\n{"n": 4}\n')
    with pytest.warns(UserWarning, match="line 3 of .*a.jsonl is no JSON") as warned:
        assert read_json_lines(path) == [{"n": 1}, {"n": 4}]
    assert len(warned) == 1, "an empty line is no damage"


def test_no_file_is_an_error_and_an_empty_one_is_not(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_json_lines(tmp_path / "a.jsonl")
    (tmp_path / "a.jsonl").touch()
    assert read_json_lines(tmp_path / "a.jsonl") == []
    append_json_line(tmp_path / "a.jsonl", 1)
    assert (tmp_path / "a.jsonl").read_text() == "1\n"


@pytest.mark.parametrize("fault", [None, PermissionError(1, "Operation not permitted")], ids=["links", "no links"])
def test_a_new_file_takes_no_others_place(fault, tmp_path, monkeypatch):
    def refuse(*paths):
        raise fault

    if fault is not None:
        monkeypatch.setattr(os, "link", refuse)
    write_new(tmp_path / "a", lambda temporary: temporary.write_text("first"))
    assert (tmp_path / "a").read_text() == "first"
    if fault is None:
        write_new(tmp_path / "a", lambda temporary: temporary.write_text("second"))
        assert (tmp_path / "a").read_text() == "first"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]
