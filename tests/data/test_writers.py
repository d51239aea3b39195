"""Every writer of purify_engine.data through tests/crash_safety.py, and that what it wrote can be read."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from purify_engine.data import ImageShape, open_sink, open_source
from purify_engine.data.manifest import write_record
from tests.crash_safety import (
    assert_durable_in_the_end,
    assert_failure_leaves_what_was_there,
    assert_umask_decides_who_may_read,
    to,
)
from tests.data.access import write


def array(folder, suffix):
    path = folder / f"in{suffix}"
    np.save(path, np.ones((1, 2, 2), np.uint8)) if suffix == ".npy" else np.savez(path, images=np.ones((1, 2, 2), np.uint8))
    source = open_source(path, ImageShape(1))
    sink = open_sink(source, folder / "out" / f"a{suffix}")
    return sink.output, lambda: write(source, sink, {0: torch.ones(1, 2, 2)})


def image(folder):
    (folder / "in").mkdir()
    Image.new("L", (2, 2)).save(folder / "in" / "a.png")
    source = open_source(folder / "in", ImageShape(1))
    return folder / "out" / "a.png", lambda: write(source, open_sink(source, folder / "out"), {0: torch.ones(1, 2, 2)})


WRITERS = {
    "record": to("a.json", lambda path: write_record(path, {"a": 1})),
    "records": to("a.jsonl", lambda path: write_record(path, [1, 2])),
    "npy": lambda folder: array(folder, ".npy"),
    "npz": lambda folder: array(folder, ".npz"),
    "image": image,
}


every_writer = pytest.mark.parametrize("name", WRITERS)


@every_writer
def test_it_appears_by_a_rename_and_the_disk_has_it_in_the_end(name, tmp_path, disk_calls):
    # Of images there are many: they are awaited together, when all are written.
    assert_durable_in_the_end(WRITERS[name], tmp_path, disk_calls, awaited_together=name == "image")


@every_writer
@pytest.mark.parametrize("old", [None, "old"], ids=["no file before", "a file before"])
def test_a_failure_leaves_what_was_there(name, old, tmp_path, monkeypatch):
    kept = {".a.npy.part", ".a.npz.part", ".a.npz.part.zip"}  # rows that need not be purified again
    assert_failure_leaves_what_was_there(WRITERS[name], tmp_path, old, monkeypatch, kept=kept)


@every_writer
def test_it_may_be_read_by_whom_the_umask_lets(name, tmp_path):
    assert_umask_decides_who_may_read(WRITERS[name], tmp_path)


def test_what_was_written_can_be_read(tmp_path):
    written = {}
    for name, writer in WRITERS.items():
        (tmp_path / name).mkdir()
        written[name], run = writer(tmp_path / name)
        run()
    assert json.loads(written["record"].read_text()) == {"a": 1} and written["records"].read_text() == "1\n2\n"
    assert np.load(written["npy"]).tolist() == np.load(written["npz"])["images"].tolist() == [[[255, 255]] * 2]
    assert Image.open(written["image"]).getextrema() == (255, 255)
