"""What a run would take is told before anything is written."""

import shutil
from collections import namedtuple

import numpy as np
import pytest

from purify_engine.cli.planned import say_plan
from purify_engine.config.offline import OfflineConfig
from purify_engine.data.items import ImageShape
from purify_engine.data.planning import SAMPLED, plan
from purify_engine.data.sinks import open_sink
from purify_engine.data.sources import open_source
from tests.soak.torchless_run import Additions, make_array, make_folder, purify

CONFIG = OfflineConfig(part_size=4, batch_size=3, decoders=1)


def planned(source, output, compute=None, config=CONFIG):
    opened = open_source(source, ImageShape(1))
    return plan(compute or Additions(), opened, open_sink(opened, output), config)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root = make_folder(tmp_path_factory.mktemp("plan") / "in", count=60)
    make_folder(root / "wide", count=3, side=12)
    (root / "class0" / "000000.png").write_bytes(b"no image")
    (root / "notes.txt").touch()
    return root


def test_it_counts_and_samples_and_writes_nothing(source, tmp_path):
    found = planned(source, tmp_path / "clean")
    assert (found.items, found.left, found.parts, found.classes, found.skipped) == (63, 63, 16, 3, 1)
    assert 20 < found.sampled <= SAMPLED and found.unreadable == 1
    assert set(found.sizes) == {"8x8", "12x12"} and sum(found.sizes.values()) == found.sampled - 1
    assert not (tmp_path / "clean").exists() and found.refusal is None


def test_the_disk_that_it_says_is_about_what_is_taken(source, tmp_path):
    found = planned(source, tmp_path / "clean")
    assert purify(str(source), str(tmp_path / "clean")) == 3
    taken = sum(path.stat().st_blocks * 512 for path in (tmp_path / "clean").rglob("*") if path.is_file())
    assert 0.5 < taken / found.disk_bytes < 1.5


def test_of_an_array_it_is_the_array(tmp_path):
    found = planned(make_array(tmp_path / "in", count=200, side=32), tmp_path / "clean.npy")
    assert found.classes is None and found.sizes == {"32x32": found.sampled}
    assert 200 * 32 * 32 <= found.disk_bytes <= 200 * (32 * 32 + 400)


def test_time_is_that_of_the_slowest_stage(source, tmp_path, monkeypatch):
    class Slow(Additions):
        def start(self, images, ids):
            clock[0] += 2.0 * len(ids)
            return super().start(images, ids)

    clock = [0.0]
    monkeypatch.setattr("purify_engine.data.planning.time.perf_counter", lambda: clock[0])
    assert planned(source, tmp_path / "clean", Slow()).seconds == pytest.approx(63 * 2.0)


def test_what_was_done_already_is_not_planned_again(source, tmp_path):
    purify(str(source), str(tmp_path / "clean"))
    manifest = tmp_path / "clean" / "manifest.jsonl"
    manifest.write_bytes(b"".join(manifest.read_bytes().splitlines(keepends=True)[:10]))
    assert planned(source, tmp_path / "clean").left == 63 - 40


def test_a_disk_that_is_too_small_is_refused_before_anything_is_done(source, tmp_path, monkeypatch, capsys):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**6, 10**6 - 1000, 1000))
    found = planned(source, tmp_path / "clean")
    assert f"needs about {found.disk_bytes:,} bytes and 1,000 are free: choose another disk" in found.refusal
    assert say_plan(found, as_json=False) == 5
    assert "63 images of 3 classes, in 16 parts" in capsys.readouterr().out


def test_without_any_good_image_nothing_is_claimed(tmp_path):
    np.save(tmp_path / "in.npy", np.full((3, 8, 8), np.nan, np.float32))
    found = planned(tmp_path / "in.npy", tmp_path / "clean.npy")
    assert found.seconds is None and found.unreadable == 3 == found.sampled
    assert say_plan(found, as_json=True) == 0
