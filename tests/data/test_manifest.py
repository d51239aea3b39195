"""The records of a run: who may go on with it, what is done again, and what damage is noticed."""

import json
import os
import warnings

import pytest

from purify_engine.config.offline import OfflineConfig
from purify_engine.data.items import ImageShape
from purify_engine.data.manifest import Manifest
from purify_engine.data.run import run
from purify_engine.data.sinks import open_sink
from purify_engine.data.sources import open_source
from tests.output_trees import files, identical
from tests.soak.torchless_run import Additions, make_array, make_folder


@pytest.fixture(autouse=True)
def _disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def source(tmp_path):
    return make_folder(tmp_path / "in", count=6, side=4)


def purify(source, output, told=lambda event, **facts: None, compute=None, **options):
    config = OfflineConfig(**{"part_size": 2, "batch_size": 2, "decoders": 1, **options})
    opened = open_source(source, ImageShape(1))
    return run(compute or Additions(), opened, open_sink(opened, output), config=config, told=told)


def lines(output):
    return (output / "manifest.jsonl").read_bytes().splitlines(keepends=True)


def test_a_second_run_on_the_same_output_is_refused_while_the_first_goes_on(source, tmp_path):
    refused = []

    def told(event, **facts):
        if event == "part" and not refused:
            with pytest.raises(ValueError, match="must not be in use by a run that goes on, got .*clean.*: wait for it, or"):
                purify(source, tmp_path / "clean")
            refused.append(event)

    assert purify(source, tmp_path / "clean", told).ok == 6 and refused
    assert not [name for name in files(tmp_path / "clean") if "lock" in name]
    purify(source, tmp_path / "clean")  # it has given it back


def test_a_run_of_another_configuration_is_refused_with_the_difference(source, tmp_path):
    purify(source, tmp_path / "clean")
    before = files(tmp_path / "clean")
    with pytest.raises(ValueError, match=r"same run to be resumed, .* where part_size was 2 and is 3\. Repeat its command, or"):
        purify(source, tmp_path / "clean", part_size=3)
    (source / "class0" / "another.png").write_bytes(b"")
    with pytest.raises(ValueError, match="source.items was 6 and is 7"):
        purify(source, tmp_path / "clean")
    assert files(tmp_path / "clean") == before, "it is left as it was"


def test_a_folder_that_holds_something_else_is_refused_and_left_as_it_is(source, tmp_path):
    (tmp_path / "clean").mkdir()
    (tmp_path / "clean" / "notes.txt").touch()
    with pytest.raises(ValueError, match="output must be a new or an empty folder, or one that this command began"):
        purify(source, tmp_path / "clean")
    assert list(files(tmp_path / "clean")) == ["notes.txt"]


@pytest.mark.parametrize("part", range(3))
def test_a_manifest_cut_anywhere_in_its_last_line_goes_on_from_the_line_before(part, source, tmp_path):
    purify(source, tmp_path / "whole")
    for kept in range(0, len(lines(tmp_path / "whole")[part]), 160):
        output = tmp_path / f"{part}-{kept}"
        purify(source, output)
        every = lines(output)
        (output / "manifest.jsonl").write_bytes(b"".join(every[:part]) + every[part][:kept])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that the cut line is left out, once another follows
            done = []
            purify(source, output, told=lambda event, done=done, **facts: done.append(facts["part"]) if event == "part" else None)
        assert done == list(range(part, 3)) and not identical(output, tmp_path / "whole")


def test_a_last_line_that_lacks_its_end_alone_is_a_record(source, tmp_path):
    purify(source, tmp_path / "whole")
    purify(source, tmp_path / "clean")
    first, second, third = lines(tmp_path / "clean")
    (tmp_path / "clean" / "manifest.jsonl").write_bytes(second + third + first.rstrip())  # parts may come in any order
    purify(source, tmp_path / "clean")
    assert not identical(tmp_path / "clean", tmp_path / "whole")


DAMAGED = [b"[]\n", b'{"part": 1}\n', b'{"part": "1"}\n', b"3\n", b"\xff\xfe\n", b'{"part": 1, "files": 3}\n']


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_record_is_told_of_and_its_part_done_again(damage, source, tmp_path):
    purify(source, tmp_path / "whole")
    purify(source, tmp_path / "clean")
    every = lines(tmp_path / "clean")
    (tmp_path / "clean" / "manifest.jsonl").write_bytes(every[0] + damage + every[2])
    with pytest.warns(UserWarning, match="no record of a part|no JSON"):
        purify(source, tmp_path / "clean")
    assert not identical(tmp_path / "clean", tmp_path / "whole")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"identity": {}}', '{"identity": {}, "identity_sha256": "0", "pinned": {}}'])
def test_a_damaged_run_json_is_refused_in_a_line(content, source, tmp_path):
    purify(source, tmp_path / "clean")
    (tmp_path / "clean" / "run.json").write_text(content)
    with pytest.raises(ValueError, match="output must have the run.json of its run to be resumed, .* is damaged: ") as refused:
        purify(source, tmp_path / "clean")
    assert "\n" not in str(refused.value)


def test_what_a_killed_run_left_is_removed_and_nothing_of_another_output(tmp_path):
    source = make_array(tmp_path / "in", count=6, side=4)
    left = [".clean.npy.01234567.part", ".clean.run.json.89abcdef.part"]
    others = [".clean.more.npy.01234567.part", "clean.txt"]
    for name in left + others:
        (tmp_path / name).touch()
    purify(source, tmp_path / "clean.npy")
    names = {path.name for path in tmp_path.iterdir()}
    assert not names & set(left) and names >= set(others)


class TestRetryFailed:
    def broken(self, source, name):
        path = source / name
        content = path.read_bytes()
        path.write_bytes(b"no image")
        return path, content

    def test_parts_with_failed_images_are_done_again_and_no_others(self, source, tmp_path):
        purify(source, tmp_path / "whole")
        path, content = self.broken(source, "class0/000002.png")
        assert [failure.id for failure in purify(source, tmp_path / "clean").failed] == [2]
        path.write_bytes(content)
        assert purify(source, tmp_path / "clean").ok_now == 0, "the same command does what is left, and nothing is"
        done = []
        purify(source, tmp_path / "clean", lambda event, **facts: done.append((event, facts.get("part"))), retry_failed=True)
        assert [part for event, part in done if event == "part"] == [1]
        assert not identical(tmp_path / "clean", tmp_path / "whole")

    @pytest.mark.parametrize("lose", [os.unlink, lambda path: os.truncate(path, 10)], ids=["gone", "cut short"])
    def test_parts_whose_files_are_lost_are_done_again_and_no_others(self, lose, source, tmp_path):
        purify(source, tmp_path / "clean")
        before, told = files(tmp_path / "clean"), []
        lose(tmp_path / "clean" / "class0" / "000002.png")
        summary = purify(source, tmp_path / "clean", lambda *event, **facts: told.append((*event, facts)), retry_failed=True)
        assert [facts["part"] for event, facts in told if event == "part"] == [1] and summary.ok == 6
        after = files(tmp_path / "clean")
        assert after["class0/000002.png"] == before["class0/000002.png"] and after.keys() == before.keys()

    def test_what_was_purified_once_is_never_taken_away(self, source, tmp_path):
        path, content = self.broken(source, "class0/000002.png")
        purify(source, tmp_path / "clean")
        path.write_bytes(content)
        self.broken(source, "class1/000003.png")  # of the same part, and good before
        before, told = files(tmp_path / "clean"), []
        summary = purify(source, tmp_path / "clean", lambda event, **facts: told.append(event), retry_failed=True)
        assert [failure.id for failure in summary.failed] == [2] and "kept" in told and "part" not in told
        after = files(tmp_path / "clean")
        assert {name: content for name, content in after.items() if name != "run.json"} == {
            name: content for name, content in before.items() if name != "run.json"
        }

    def test_what_fails_again_is_recorded_once(self, source, tmp_path):
        self.broken(source, "class0/000002.png")
        purify(source, tmp_path / "clean")
        assert [failure.id for failure in purify(source, tmp_path / "clean", retry_failed=True).failed] == [2]
        assert len(lines(tmp_path / "clean")) == 3 == len({json.loads(line)["part"] for line in lines(tmp_path / "clean")})


def test_nothing_is_computed_where_the_output_cannot_be_written(source, tmp_path, monkeypatch):
    class Never(Additions):
        def start(self, images, ids):
            raise AssertionError("images are purified for nothing")

    def read_only(path, *args, **options):
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr(os, "open", read_only)
    with pytest.raises(OSError, match=r"Read-only file system: .*clean"):
        purify(source, tmp_path / "clean", compute=Never())


def test_a_run_ends_with_its_lock_given_back_however_it_ends(source, tmp_path):
    class Broken(Additions):
        def start(self, images, ids):
            raise RuntimeError("a fault of the program")

    with pytest.raises(RuntimeError, match="a fault of the program"):
        purify(source, tmp_path / "clean", compute=Broken())
    opened = open_source(source, ImageShape(1))
    assert not Manifest(open_sink(opened, tmp_path / "clean")).lock_path.exists()
    assert purify(source, tmp_path / "clean").ok == 6
