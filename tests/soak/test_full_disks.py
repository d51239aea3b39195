"""Disks that are full, files that may grow no further, targets that may not be written: said in a line, resumed without a trace.

Needs root, to mount small file systems in memory.
"""

from __future__ import annotations

import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.output_trees import TELLING, damage, files, identical
from tests.soak.offspring import Parent
from tests.soak.torch_run import make_purifier
from tests.soak.torchless_run import SOURCES, make_array, make_folder, make_shards

SIZES, INPUT_OUTPUT = 20, 5


@pytest.fixture(scope="module")
def parent():
    with Parent("tests.soak.torch_run") as started:
        yield started


@pytest.fixture(scope="module")
def purifier(tmp_path_factory):
    return make_purifier(tmp_path_factory.mktemp("purifier") / "purifier")


class World:
    """A source, and what it becomes where there is room."""

    def __init__(self, kind, parent, purifier, root):
        make = {"folder": make_folder, "array": make_array, "webdataset": make_shards}[kind]
        self.source, self.name = make(root / "in", count=60, side=8), SOURCES[kind][1]
        self.parent, self.purifier, self.said = parent, purifier, root / "said"
        (root / "whole").mkdir()
        assert self.purify(root / "whole") == 0
        self.whole = self.tree(root / "whole")
        self.sizes = [len(content) for name, content in files(self.whole).items() if not name.endswith(TELLING)]
        self.bytes = sum(-(-size // 4096) * 4096 for size in self.sizes)

    def tree(self, place):
        return place if "." in self.name else place / self.name

    def purify(self, place, **limits):
        words = ["purify", self.source, place / self.name, "--purifier", self.purifier, "--device", "cpu"]
        options = ["--part-size", "8", "--batch-size", "8"]
        return self.parent.run("command", words=[*map(str, words), *options], said=self.said, **limits)

    def assert_said(self, place):
        """One line, which names a file of the output, and bytes."""
        (line,) = (line for line in self.said.read_text().splitlines() if not line.startswith("{"))
        assert line.startswith("purify-engine: ") and str(place) in line and "bytes" in line, line

    def assert_clean(self, place):
        tree = self.tree(place)
        assert not tree.exists() or not damage(tree, self.whole)
        assert not [name for name in (files(place) if place.exists() else ()) if name.endswith(".part") and self.name == "clean"]


@contextmanager
def small_disk(place: Path, size: int):
    """A file system of `size` bytes."""
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("kind", ["folder", "array", "webdataset"])
def test_small_disks(kind, parent, purifier, tmp_path, reached):
    world, full = World(kind, parent, purifier, tmp_path), 0
    for step in range(SIZES):
        place = tmp_path / f"disk{step}"
        size = 4096 * max(2, round(world.bytes * (step + 1) / (SIZES + 2) / 4096))
        with small_disk(place, size):
            code = world.purify(place)
            assert code in (0, INPUT_OUTPUT), f"{size} bytes: exit code {code}: {world.said.read_text()}"
            if code:
                full += 1
                world.assert_said(place)
                world.assert_clean(place)
                subprocess.run(["mount", "-o", f"remount,size={2**26}", str(place)], check=True)
                assert world.purify(place) == 0, world.said.read_text()
            assert not identical(world.tree(place), world.whole), f"{size} bytes"
    assert full >= SIZES // 2
    reached("disk full", SIZES, asked=SIZES, of="sizes of a disk", case=kind, too_small=full)


def test_files_that_may_grow_no_further(parent, purifier, tmp_path, reached):
    count = 0
    for kind in ("folder", "array", "webdataset"):
        root = tmp_path / kind
        root.mkdir()
        world = World(kind, parent, purifier, root)
        largest = max(world.sizes)
        for limit in (512, largest // 3, largest - 1):  # more than the line that is said has
            place = root / str(limit)
            assert world.purify(place, limit=limit) == INPUT_OUTPUT, f"{kind}, {limit} bytes: {world.said.read_text()}"
            world.assert_said(place)
            world.assert_clean(place)
            assert world.purify(place) == 0
            assert not identical(world.tree(place), world.whole)
            count += 1
    reached("disk full", count, asked=9, of="limits of files", case="RLIMIT_FSIZE")


def test_a_device_that_is_always_full(parent, purifier, tmp_path, reached):
    world = World("folder", parent, purifier, tmp_path)
    place = tmp_path / "place"
    assert world.purify(place, out="/dev/full") == INPUT_OUTPUT
    (line,) = (line for line in world.said.read_text().splitlines() if not line.startswith("{"))
    assert line.startswith("purify-engine: No space left on device: standard output")
    assert not identical(world.tree(place), world.whole), "all was written before anything was said"
    reached("disk full", 1, asked=1, of="full devices", case="/dev/full")


@pytest.mark.parametrize("kind", ["folder", "array", "webdataset"])
def test_a_target_that_may_not_be_written_is_found_before_anything_is_computed(kind, parent, purifier, tmp_path):
    world = World(kind, parent, purifier, tmp_path)
    place = tmp_path / "disk"
    with small_disk(place, 2**20):
        subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
        assert world.purify(place, computes=False) == INPUT_OUTPUT
        (line,) = world.said.read_text().splitlines()
        assert "Read-only file system" in line and str(place) in line
