"""Shares of a run in one output: together what one run makes, in any number, order, and at once."""

import json
import threading

import pytest

from purify_engine.config import OfflineConfig
from purify_engine.data import open_sink, open_source
from purify_engine.data.items import ImageShape
from purify_engine.data.manifest import Manifest
from purify_engine.data.run import run
from purify_engine.data.shares import Share
from purify_engine.data.verification import verify
from tests.data.deadly import Washed, image_folder
from tests.data.test_processes import images_in

SIZES = {"part_size": 4, "batch_size": 3, "decoders": 1, "threads": 1}


def share(source, output, index=None, count=None, compute=None, **how):
    """A share of a run, or all of it."""
    images = open_source(source, ImageShape(channels=3))
    config = OfflineConfig(**SIZES, shard_index=index, num_shards=count, **how)
    return run(compute or Washed(), images, open_sink(images, output), config=config)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = image_folder(tmp_path_factory.mktemp("shares") / "in", 26)
    (folder / "a" / "broken.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def plain(source):
    share(source, source.parent / "plain")
    return tree(source.parent / "plain")


def tree(output):
    """Every file but what tells of circumstances: run.json's identity and what is pinned alone."""
    files = {path.relative_to(output).as_posix(): path.read_bytes() for path in output.rglob("*") if path.is_file()}
    runs = {name: json.loads(files.pop(name)) for name in sorted(files) if name.startswith("run.")}
    return {**files, "run.json": (runs["run.json"]["identity"], runs["run.json"]["pinned"])}


def test_shares_make_what_one_run_makes(source, plain, tmp_path):
    output = tmp_path / "out"
    first = share(source, output, 2, 3)
    assert (first.left, first.elsewhere, first.ok + len(first.failed)) == (0, 27 - 8, 8)  # parts 2 and 5 of 0 to 6
    assert not (output / "manifest.jsonl").exists() and (output / "manifest.2-of-3.jsonl").exists()
    assert [problem for problem in verify(output).problems if "manifest" in problem or "run" in problem] == []
    share(source, output, 0, 3)
    last = share(source, output, 1, 3)
    assert (last.left, last.elsewhere, last.ok, len(last.failed)) == (0, 0, 26, 1)
    assert tree(output) == plain
    runs = ["run.0-of-3.json", "run.1-of-3.json", "run.2-of-3.json", "run.json"]
    assert sorted(path.name for path in output.glob("run.*")) == runs
    assert verify(output).problems == ()


@pytest.mark.parametrize("others", [(), ((0, 2), (1, 2)), ((4, 5), (0, 1))], ids=["one run", "two shares", "another number"])
def test_another_number_of_shares_goes_on(source, plain, tmp_path, others):
    share(source, tmp_path / "out", 1, 3)
    for other in others or [(None, None)]:
        share(source, tmp_path / "out", *other)
    assert tree(tmp_path / "out") == plain


def test_shares_that_run_at_once_agree_on_what_is_pinned(source, plain, tmp_path):
    faults = []

    def one(index):
        try:
            share(source, tmp_path / "out", index, 4)
        except BaseException as fault:
            faults.append(fault)

    threads = [threading.Thread(target=one, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
    share(source, tmp_path / "out")  # removes what shares left that ended together
    assert tree(tmp_path / "out") == plain


def test_shares_and_a_run_of_the_whole_keep_out_of_each_others_way(source, tmp_path):
    images = open_source(source, ImageShape(channels=3))
    sink = open_sink(images, tmp_path / "out")
    share(source, tmp_path / "out", 0, 2)

    class Peeking(Washed):
        def start(self, images, ids):
            for one in ((None, None), (1, 2)):  # the whole, and this share itself
                with pytest.raises(ValueError, match="output must not be in use by a run that goes on"):
                    share(source, tmp_path / "out", *one)
            return super().start(images, ids)

    assert share(source, tmp_path / "out", 1, 2, Peeking()).left == 0
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]
    assert len(list(Manifest(sink).records())) == 7


def test_what_a_share_failed_is_tried_again_and_the_better_record_stays(source, tmp_path):
    class Failing(Washed):
        def finish(self, started):
            return super().finish(started) * float("nan")

    share(source, tmp_path / "out", 0, 2, Failing())
    share(source, tmp_path / "out", 1, 2)
    assert len(share(source, tmp_path / "out", 1, 2).failed) > 1
    mended = share(source, tmp_path / "out", 0, 2, retry_failed=True)
    assert [failure.name for failure in mended.failed] == ["a/broken.png"] and len(images_in(tmp_path / "out")) == 26
    assert verify(tmp_path / "out").problems == ()


def test_a_share_waits_for_what_another_measures_and_pins(source, tmp_path):
    sink, pinned = open_sink(open_source(source, ImageShape(channels=3)), tmp_path / "out"), {}

    def begin(index, measured):
        with Manifest(sink, Share(index, 2)) as manifest:
            pinned[index] = manifest.begin({"source": 1}, measured, ())

    second = threading.Thread(target=begin, args=(1, lambda: {"batch_size": 2}))

    def while_the_first_measures():
        second.start()
        second.join(0.3)
        assert second.is_alive() and not pinned
        return {"batch_size": 1}

    begin(0, while_the_first_measures)
    second.join()
    assert pinned == {0: {"batch_size": 1}, 1: {"batch_size": 1}}
