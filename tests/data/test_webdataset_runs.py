"""Runs over tar shards: resumed, tried again, refused where the shards changed, and as docs/offline.md shows them."""

from __future__ import annotations

import io
import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from purify_engine.config import OfflineConfig
from purify_engine.data import open_sink, open_source
from purify_engine.data.run import Stop, run
from purify_engine.data.tar import read
from tests.data.darkened import Darkened
from tests.data.tars import END, SHAPE, contents, file, sample

PAGE = Path(__file__).parents[2] / "docs" / "offline.md"


@pytest.fixture
def shards(tmp_path):
    """Seven samples, of which one image is broken, in two shards; the second one is cut behind its third."""
    folder = tmp_path / "shards"
    folder.mkdir()
    broken = file(b"broken.png", b"no image")
    (folder / "a.tar").write_bytes(b"".join([*(sample(b"a%d" % number, 1, 20 * number) for number in range(4)), broken, END]))
    (folder / "b.tar").write_bytes(b"".join(sample(b"b%d" % number, 2, 30 * number) for number in range(3))[:-300])
    return folder


def purified(shards, output, **options):
    compute = Darkened(options.pop("refused", ()))
    source = open_source(shards, SHAPE)
    stop = options.pop("stop", None)
    told = options.pop("told", lambda event, **facts: None)
    sink = open_sink(source, output)
    return run(compute, source, sink, config=OfflineConfig(part_size=2, decoders=1, **options), stop=stop, told=told), compute


def tars_in(output):
    return {path.name: path.read_bytes() for path in output.glob("*.tar")}


def test_what_is_whole_is_purified_and_what_is_not_is_a_record(shards, tmp_path):
    summary, _ = purified(shards, tmp_path / "out")
    assert (summary.total, summary.ok, summary.left) == (8, 6, 0)
    assert [(failure.id, failure.name) for failure in summary.failed] == [(4, "a.tar/broken.png"), (7, "b.tar/b2.png")]
    assert "cut short" in summary.failed[1].reason
    assert sorted(tars_in(tmp_path / "out")) == ["a-00000.tar", "a-00001.tar", "b-00000.tar"]
    (name, image), label = contents(tars_in(tmp_path / "out")["a-00001.tar"])[2:]
    assert name == "a3.png" and label == ("a3.cls", b"1")
    assert np.asarray(Image.open(io.BytesIO(image))).max() == 30


def test_a_part_without_a_record_is_done_again_and_no_other(shards, tmp_path):
    purified(shards, tmp_path / "whole")
    expected = tars_in(tmp_path / "whole")
    stop, output = Stop(), tmp_path / "out"
    purified(shards, output, stop=stop, told=lambda event, **facts: setattr(stop, "requested", event == "part"))
    manifest = output / "manifest.jsonl"
    lines = manifest.read_text().splitlines(keepends=True)
    manifest.write_text("".join(lines[1:]))  # killed between the rename of the first shard and its record
    (output / "a-00000.tar").write_bytes(b"another run's")
    done = {record["part"] for record in map(json.loads, lines[1:])}
    summary, compute = purified(shards, output)
    assert tars_in(output) == expected
    parts = {0: {0, 1}, 1: {2, 3}, 2: set(), 3: {5, 6}, 4: set()}
    assert set(compute.seen) == set().union(*(ids for part, ids in parts.items() if part not in done))
    assert (summary.ok, len(summary.failed)) == (6, 2)


def test_failed_samples_are_tried_again_and_other_shards_are_refused(shards, tmp_path):
    purified(shards, tmp_path / "out")
    _, compute = purified(shards, tmp_path / "out", retry_failed=True)
    assert compute.seen == []  # what failed stands alone in its parts, and fails again before it is purified
    (shards / "c.tar").write_bytes(sample(b"c") + END)
    with pytest.raises(ValueError, match=r"source.items was 8 and is 9"):
        purified(shards, tmp_path / "out")


def test_sources_and_sinks_can_be_sent_to_other_processes(shards, tmp_path):
    source = open_source(shards, SHAPE)
    sink = open_sink(source, tmp_path / "out")
    there, sink_there = pickle.loads(pickle.dumps((source, sink)))
    assert there.fingerprint() == source.fingerprint() and there.parts(2) == source.parts(2)
    assert [item.name for item in there.items(there.parts(9)[0])] == [source.name(id) for id in range(5)]
    assert sink_there.record("run.json") == sink.record("run.json")


def test_the_example_of_the_page_runs(tmp_path, monkeypatch):
    section = PAGE.read_text().split("## WebDataset", 1)[1].split("\n## ", 1)[0]
    (example,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    picture = io.BytesIO()
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(picture, "PNG")
    for number in range(2):
        Path("shards").mkdir(exist_ok=True)
        content = file(b"0.png", picture.getvalue()) + file(b"0.cls", b"3") + END
        (tmp_path / "shards" / f"train-{number:03d}.tar").write_bytes(content)
    said = {}
    exec(compile(example, str(PAGE), "exec"), said)
    assert said["summary"].ok == 2
    assert sorted(tars_in(tmp_path / "clean")) == ["train-000.tar", "train-001.tar"]


def test_a_sample_that_cannot_be_read_any_more_is_not_taken_from_its_shard(shards, tmp_path, monkeypatch):
    monkeypatch.setattr("purify_engine.data.sources.webdataset.MOST_HELD", 0)  # members are read when they are needed

    def unreadable(file, member):
        if member.name == "a0.cls":
            raise OSError(5, "Input/output error")
        return read(file, member)

    purified(shards, tmp_path / "out", refused={1})
    before = tars_in(tmp_path / "out")
    monkeypatch.setattr("purify_engine.data.sources.samples.read", unreadable)
    summary, _ = purified(shards, tmp_path / "out", retry_failed=True)
    assert tars_in(tmp_path / "out") == before and [failure.id for failure in summary.failed] == [1, 4, 7]
    monkeypatch.undo()
    summary, _ = purified(shards, tmp_path / "out", retry_failed=True)
    assert [failure.id for failure in summary.failed] == [4, 7] and tars_in(tmp_path / "out") != before


def test_shards_in_a_folder_that_is_called_as_a_record_are_refused_before_anything_is_written(shards, tmp_path):
    (shards / "Run.json").mkdir()
    (shards / "b.tar").rename(shards / "Run.json" / "b.tar")
    with pytest.raises(ValueError, match=r"^source must be free of folders .* records of a run are .*, got 'Run.json/b.tar'$"):
        purified(shards, tmp_path / "out")
    assert not (tmp_path / "out").exists()
