"""Runs from an array to an array that are interrupted, damaged, taken up again: the output is whole or not there."""

import errno
import hashlib
import os

import numpy as np
import pytest

from purify_engine.config import OfflineConfig
from purify_engine.data import ImageShape, open_sink, open_source
from purify_engine.data.run import run
from purify_engine.data.sources.npy import open_rows, recorded_rows
from tests.data.darkened import Darkened

ROWS = np.random.RandomState(1).rand(7, 3, 4, 2).astype(np.float16).transpose(0, 2, 3, 1)[..., :1]  # [N, H, W, 1]


def source_at(folder, kind, array=ROWS, save=np.savez, **others):
    path = folder / f"in.{kind}"
    np.save(path, array) if kind == "npy" else save(path, images=array, **others)
    return path


class Killed(Exception):  # noqa: N818 - stands for the end of the process
    pass


def purified(path, output, parts=None, retry=False, compute=None):
    """Run, and end after so many parts."""
    source, seen = open_source(path, ImageShape(1)), []

    def told(event, **facts):
        seen.append(event)
        if seen.count("part") == parts:
            raise Killed

    config = OfflineConfig(part_size=2, retry_failed=retry)
    return run(compute or Darkened(), source, open_sink(source, output), config=config, told=told)


def loaded(path):
    return np.load(path) if path.suffix == ".npy" else np.load(path)["images"]


@pytest.mark.parametrize("kind", ["npy", "npz"])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed], ids=["stored", "deflated"])
def test_an_interrupted_run_ends_with_the_same_bytes(kind, save, tmp_path):
    path = source_at(tmp_path, kind, save=save, labels=np.arange(7))
    purified(path, tmp_path / f"once.{kind}")
    output = tmp_path / f"out.{kind}"
    for _ in range(4):
        with pytest.raises(Killed):
            purified(path, output, parts=1)
        assert not output.exists(), "before the end there is no output"
        assert (tmp_path / f".out.{kind}.part").exists() and (tmp_path / ".out.npz.part.zip").exists() == (kind == "npz")
    purified(path, output, parts=1)
    assert output.read_bytes() == (tmp_path / f"once.{kind}").read_bytes()
    assert not [entry for entry in tmp_path.iterdir() if entry.name.startswith(".")]
    assert np.abs(loaded(output) - ROWS / 2).max() < 1e-3 and loaded(output).dtype == np.float16
    assert purified(path, output).left == 0 and output.read_bytes() == (tmp_path / f"once.{kind}").read_bytes()


def test_rows_that_failed_are_told_and_retried(tmp_path):
    path = source_at(tmp_path, "npz", labels=np.arange(7), note=np.ones((2, 2)))
    output = tmp_path / "out.npz"
    summary = purified(path, output, compute=Darkened(refused={1, 6}))
    assert [failure.id for failure in summary.failed] == [1, 6]
    with np.load(output) as arrays:
        assert arrays["purified"].tolist() == [True, False, True, True, True, True, False]
        assert not arrays["images"][[1, 6]].any() and arrays["images"][[0, 2, 3, 4, 5]].any((1, 2, 3)).all()
        assert arrays["labels"].tolist() == list(range(7)) and arrays["note"].shape == (2, 2)
    again = purified(path, output, retry=True)
    assert again.ok == 7 and not again.failed
    purified(path, tmp_path / "once.npz")
    assert output.read_bytes() == (tmp_path / "once.npz").read_bytes()
    assert "purified" not in np.load(output).files


def test_what_is_purified_again_keeps_which_rows_were_no_images(tmp_path):
    path = source_at(tmp_path, "npz", purified=np.arange(7) != 3)
    purified(path, tmp_path / "out.npz", compute=Darkened(refused={0}))
    assert np.load(tmp_path / "out.npz")["purified"].tolist() == [False, True, True, False, True, True, True]
    allowed = r"without an array purified, or with one that is bool \[7\]"
    with pytest.raises(ValueError, match=rf"^source must be {allowed}, got 'int64 \[2\]'$"):
        purified(source_at(tmp_path, "npz", purified=np.arange(2)), tmp_path / "other.npz")


@pytest.mark.parametrize("kind", ["npy", "npz"])
def test_where_every_row_failed_there_is_no_output(kind, tmp_path):
    path = source_at(tmp_path, kind, np.full_like(ROWS, np.nan))
    assert len(purified(path, tmp_path / f"out.{kind}").failed) == 7
    assert {entry.name for entry in tmp_path.iterdir()} == {
        path.name, "out.run.json", "out.manifest.jsonl", "out.failed.jsonl", "out.skipped.jsonl"
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["npy", "npz"])
def test_a_disk_that_is_too_small_is_found_before_anything_is_computed(kind, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    path, compute = source_at(tmp_path, kind), Darkened()
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match=r"No space left on device, for an array of \d+ bytes: '.*/deep/.out.np[yz].part'$"):
        purified(path, tmp_path / "deep" / f"out.{kind}", compute=compute)
    assert not compute.seen and not list((tmp_path / "deep").iterdir())


@pytest.mark.parametrize("kind", ["npy", "npz"])
@pytest.mark.parametrize("how", ["gone", "changed"])
def test_rows_that_are_not_as_recorded_are_no_output(kind, how, tmp_path):
    path, output = source_at(tmp_path, kind), tmp_path / f"out.{kind}"
    with pytest.raises(Killed):
        purified(path, output, parts=2)
    partial = tmp_path / f".out.{kind}.part"
    if how == "gone":
        partial.unlink()
    else:
        with partial.open("r+b") as file:
            file.seek(130)  # past the header, in the first row
            file.write(b"?")
    allowed = r"made of the rows that were recorded \(remove out.run.json and out.manifest.jsonl to begin anew\)"
    with pytest.raises(ValueError, match=rf"^output must be {allowed}, got 'other rows at out.np.*\[0:2\]'$"):
        purified(path, output)
    assert not output.exists()


@pytest.mark.parametrize("kind", ["npy", "npz"])
def test_every_part_of_a_finished_array_can_be_proved(kind, tmp_path):
    path, output = source_at(tmp_path, kind), tmp_path / f"out.{kind}"
    records = []
    source = open_source(path, ImageShape(1))
    told = lambda event, **facts: records.append(facts) if event == "part" else None  # noqa: E731
    run(Darkened(), source, open_sink(source, output), config=OfflineConfig(part_size=3), told=told)
    proved = []
    for record in records:
        ((name, size, sha256),) = record["files"]
        file, key, first, count = recorded_rows(name)
        rows = open_rows(tmp_path / file, key)
        assert size == rows.read(first, count).nbytes and sha256 == rows.sha256(first, count)
        assert sha256 == hashlib.sha256(np.ascontiguousarray(loaded(output)[first : first + count]).tobytes()).hexdigest()
        proved += range(first, first + count)
    assert proved == list(range(7))


@pytest.mark.parametrize("name", ["out.npy", "out.npy[0:2", "out.npy[-1:2]", "a/out.npy[0:2]", "out.txt[0:2]", "[0:2]"])
def test_other_names_are_no_rows(name):
    assert recorded_rows(name) is None


def test_an_image_of_another_size_than_its_row_fails_alone(tmp_path):
    path = source_at(tmp_path, "npy")
    summary = purified(path, tmp_path / "out.npy", compute=Darkened(grown=True))
    assert {failure.reason for failure in summary.failed} == {"became [8, 4, 1], and the array's rows are [4, 2, 1]"}


def test_rows_that_another_process_has_written_already_stay_where_a_finished_array_is_taken_up(tmp_path, monkeypatch):
    path, output = source_at(tmp_path, "npy"), tmp_path / "out.npy"
    purified(path, output, compute=Darkened(refused={1, 6}))
    one, other = (open_sink(open_source(path, ImageShape(1)), output) for _ in range(2))

    def meanwhile(*args):
        monkeypatch.undo()
        other._take_up()
        with other.partial.open("r+b") as file:
            file.seek(len(other.header))
            file.write(b"row")
        return open_rows(*args)

    monkeypatch.setattr("purify_engine.data.sinks.array.open_rows", meanwhile)
    one._take_up()
    assert one.partial.read_bytes()[len(one.header) :].startswith(b"row")
    assert sorted(entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".")) == [".out.npy.part"]


def test_a_retry_that_was_killed_before_its_record_is_ended_by_another(tmp_path, monkeypatch):
    path, output = source_at(tmp_path, "npy"), tmp_path / "out.npy"
    purified(path, output, compute=Darkened(refused={1, 6}))

    def killed(manifest, record):
        raise Killed

    monkeypatch.setattr("purify_engine.data.manifest.Manifest.commit", killed)
    with pytest.raises(Killed):
        purified(path, output, retry=True)
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"\(give --retry-failed, where a retry was interrupted, or remove out.run.json and "):
        purified(path, output)
    assert purified(path, output, retry=True).ok == 7
    purified(path, tmp_path / "once.npy")
    assert output.read_bytes() == (tmp_path / "once.npy").read_bytes()
