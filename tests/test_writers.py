"""Every function that writes a file: whole, on the disk before its name, and nothing where it fails half-way."""

import json
import os
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from purify_engine.config import ClassifierConfig, ClassifierTraining
from purify_engine.data import ImageShape, open_sink, open_source, write_record
from purify_engine.evaluation.report import write_report
from purify_engine.models import load_safetensors, save_safetensors
from purify_engine.presets import write_config
from purify_engine.training.checkpoint import load_checkpoint, save_checkpoint
from purify_engine.training.model_card import ModelCard, publish


def array(folder, suffix):
    path = folder / f"in{suffix}"
    np.save(path, np.ones((1, 2, 2), np.uint8)) if suffix == ".npy" else np.savez(path, images=np.ones((1, 2, 2), np.uint8))
    source, target = open_source(path, ImageShape(1)), folder / "out" / f"a{suffix}"
    sink = open_sink(source, target)
    sink.write(0, torch.ones(1, 2, 2))
    return target, sink.close


def image(folder):
    (folder / "in").mkdir()
    Image.new("L", (2, 2)).save(folder / "in" / "a.png")
    sink = open_sink(open_source(folder / "in", ImageShape(1)), folder / "out")

    def write():
        sink.write(0, torch.ones(1, 2, 2))
        sink.close()

    return folder / "out" / "a.png", write


CARD = ModelCard(
    name="a", title="", what="", data="", image_shape=(1,), num_images=1, parameters=1,
    network=ClassifierConfig(), config=ClassifierTraining(), figures={}, use="", limits="",
)  # fmt: skip


def to(name, write):
    """A writer of `folder / "out" / name`."""
    return lambda folder: (folder / "out" / name, lambda: write(folder / "out" / name))


# name -> (folder -> what is written, and how)
WRITERS = {
    "weights": to("a.safetensors", lambda path: save_safetensors(torch.nn.Linear(2, 2), path)),
    "checkpoint": to("a.checkpoint", lambda path: save_checkpoint(path, {"experiment": {}})),
    "card": to("a.md", lambda path: publish(torch.nn.Linear(2, 2), CARD, path.parent)),
    "config": to("config.json", lambda path: write_config(path.parent, purifier=CARD.config)),
    "report": to("a.html", lambda path: write_report(path, title="", rows=())),
    "record": to("a.json", lambda path: write_record(path, {"a": 1})),
    "records": to("a.jsonl", lambda path: write_record(path, [1, 2])),
    "npy": lambda folder: array(folder, ".npy"),
    "npz": lambda folder: array(folder, ".npz"),
    "image": image,
}  # fmt: skip
every_writer = pytest.mark.parametrize("name", WRITERS)


@every_writer
def test_it_appears_by_a_rename_and_the_disk_has_it_in_the_end(name, tmp_path, disk_calls):
    path, write = WRITERS[name](tmp_path)
    write()
    (renamed,) = [call for call in disk_calls if call[0] == "rename" and call[2] == path]
    place = disk_calls.index(renamed)
    before, after = disk_calls[:place], disk_calls[place + 1 :]
    if name == "image":  # there are many: they are awaited together, when all are written
        assert after == [("fsync", path), ("fsync", path.parent)]
    else:
        assert before[-1] == ("fsync", renamed[1]) and after[0] == ("fsync", path.parent)
    assert renamed[1].parent == path.parent, "a rename to another file system copies"


@every_writer
@pytest.mark.parametrize("old", [None, "old"], ids=["no file before", "a file before"])
def test_a_failure_leaves_what_was_there(name, old, tmp_path, monkeypatch):
    path, write = WRITERS[name](tmp_path)
    path.parent.mkdir(exist_ok=True)
    if old is not None:
        path.write_text(old)
    fails = lambda *args: (_ for _ in ()).throw(OSError("No space left on device"))  # noqa: E731
    monkeypatch.setattr(Path, "replace", fails)
    with pytest.raises(OSError, match="No space left on device"):
        write()
    assert [entry.name for entry in path.parent.iterdir()] == ([path.name] if old else [])
    assert old is None or path.read_text() == old


@every_writer
def test_it_may_be_read_by_whom_the_umask_lets(name, tmp_path):
    path, write = WRITERS[name](tmp_path)
    before = os.umask(0o027)
    try:
        write()
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_what_was_written_can_be_read(tmp_path):
    written = {}
    for name, writer in WRITERS.items():
        (tmp_path / name).mkdir()
        written[name], write = writer(tmp_path / name)
        write()
    load_safetensors(torch.nn.Linear(2, 2), written["weights"])
    assert load_checkpoint(written["checkpoint"], {}) == {"experiment": {}}
    assert json.loads(written["record"].read_text()) == {"a": 1} and written["records"].read_text() == "1\n2\n"
    assert json.loads(written["config"].read_text())["purifier"]["momentum"] == 0.9
    assert np.load(written["npy"]).tolist() == np.load(written["npz"])["images"].tolist() == [[[255, 255]] * 2]
    assert Image.open(written["image"]).getextrema() == (255, 255)
    assert written["report"].read_text().startswith("<!") and written["card"].read_text().startswith("# ")
