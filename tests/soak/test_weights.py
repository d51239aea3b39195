"""A million damaged headers of safetensors, each refused in one line or read; pickles that would run code never do."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import struct
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from purify_engine.data import ImageShape, open_source, read_all
from purify_engine.models.checkpoints.reading import opened
from purify_engine.models.checkpoints.safetensors import load_safetensors, save_safetensors

HEADERS = 1_000_000
HUGE = (-1, 0, 1, 2**31, 2**53, 2**63 - 1, 2**64, 10**30, 1.5, None, True, "0", [], {}, float("nan"))


def network():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))


class Headers:
    """Damaged copies of a file: bytes changed or cut; numbers, names and types of its header changed; a length that lies."""

    def __init__(self, whole, seed):
        self.random, self.whole = random.Random(seed), whole
        self.length = int.from_bytes(whole[:8], "little")
        self.header, self.data = json.loads(whole[8 : 8 + self.length]), whole[8 + self.length :]

    def next(self):
        return self.random.choice((self.flipped, self.flipped, self.cut, self.lying, self.retyped, self.retyped, self.renamed))()

    def flipped(self):
        content = bytearray(self.whole)
        for _ in range(self.random.choice((1, 2, 8))):
            content[self.random.randrange(8 + self.length)] = self.random.randrange(256)
        return bytes(content)

    def cut(self):
        at, count = self.random.randrange(len(self.whole)), self.random.randrange(1, 16)
        return self.random.choice((self.whole[:at], self.whole[:at] + self.whole[at + count :], self.whole[:at] * 2))

    def lying(self):
        length = self.random.choice((0, 1, self.length - 1, self.length + 1, len(self.whole), 2**31, 2**63, 2**64 - 1))
        return struct.pack("<Q", length) + self.whole[8:]

    def retyped(self):
        header = json.loads(json.dumps(self.header))
        entry = header[self.random.choice([name for name in header if name != "__metadata__"])]
        key = self.random.choice(("shape", "data_offsets", "dtype"))
        if key != "dtype" and self.random.random() < 0.7 and entry[key]:
            entry[key][self.random.randrange(len(entry[key]))] = self.random.choice(HUGE)
        else:
            entry[key] = self.random.choice((*HUGE, "F64", "BOOL", [1], [0, 2**62], "F8_E4M3"))
        return self.packed(header)

    def renamed(self):
        header = dict(self.header)
        name = self.random.choice(list(header))
        header[self.random.choice(("", "a\nb", "\x1b[31m", "../" * 50, "x" * 70_000, "__metadata__", "é"))] = header.pop(name)
        return self.packed(header)

    def packed(self, header):
        content = json.dumps(header).encode()
        return struct.pack("<Q", len(content)) + content + self.data


def test_a_million_damaged_headers(tmp_path, reached):
    memory = Path("/dev/shm")
    path = (memory if memory.is_dir() else tmp_path) / f"purify-{os.getpid()}.safetensors"
    target, refused = network(), 0
    save_safetensors(target, path)
    headers = Headers(path.read_bytes(), 0)
    try:
        for count in range(HEADERS):
            content = headers.next()
            path.write_bytes(content)
            try:
                load_safetensors(target, path) if count % 2 else opened(path)
            except ValueError as error:
                assert "\n" not in str(error) and "\x1b" not in str(error) and len(str(error)) < 600, content
                refused += 1
    finally:
        path.unlink()
    assert refused > HEADERS // 2
    reached("weights", HEADERS, asked=1_000_000, of="headers of safetensors", refused=refused)


class Runs:
    """Pickled as a call that leaves a file."""

    def __init__(self, marker, how):
        self.marker, self.how = str(marker), how

    def __reduce__(self):
        if self.how == "os.system":
            return os.system, (f"touch {self.marker}",)
        if self.how == "exec":
            return exec, (f"open({self.marker!r}, 'w')",)
        return open, (self.marker, "w")


def pickled(path, payload):
    path.write_bytes(pickle.dumps({"weight": payload}, 2))


def in_a_zip(path, payload):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"weight": payload}, 2))
        archive.writestr("archive/version", "3\n")


def saved(path, payload):
    torch.save({"weight": payload}, path, _use_new_zipfile_serialization=False)


def in_an_array(path, payload):
    np.save(path.with_suffix(".npy"), np.array([payload], dtype=object))
    path.with_suffix(".npy").rename(path)


def in_an_archive(path, payload):
    with zipfile.ZipFile(path, "w") as archive:
        content = io.BytesIO()
        np.save(content, np.array([payload], dtype=object))
        archive.writestr("images.npy", content.getvalue())


def in_a_shard(path, payload):
    with tarfile.open(path, "w") as archive:
        for suffix in ("pyd", "pickle", "png", "cls"):
            content = pickle.dumps(payload)
            member = tarfile.TarInfo(f"0.{suffix}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


PAYLOADS = {
    "a pickle called .pt": ("a.pt", pickled, "os.system"),
    "a pickle called .pkl": ("a.pkl", pickled, "exec"),
    "a pickle called .safetensors": ("a.safetensors", pickled, "open"),
    "a file of torch.save": ("a.pth", in_a_zip, "os.system"),
    "an old file of torch.save": ("a.ckpt", saved, "exec"),
    "an array of objects": ("a.npy", in_an_array, "os.system"),
    "an archive of objects": ("a.npz", in_an_archive, "exec"),
    "members of a shard": ("a.tar", in_a_shard, "os.system"),
}
RUNNING = {"os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.fork"}


@pytest.fixture(scope="module")
def ran():
    """What was run since the list was cleared."""
    events = []
    sys.addaudithook(lambda event, arguments: events.append((event, arguments)) if event in RUNNING else None)
    return events


def test_no_pickle_runs(tmp_path, ran, reached):
    for says, (name, write, how) in PAYLOADS.items():
        folder = tmp_path / name
        folder.mkdir()
        marker = folder / "it ran"
        write(folder / name, Runs(marker, how))
        marker.unlink(missing_ok=True)
        ran.clear()
        readers = [lambda path: load_safetensors(network(), path), opened]
        if name.endswith((".npy", ".npz", ".tar")):
            readers = [lambda path: read_all(open_source(path, ImageShape(1)))]
        for reader in readers:
            with pytest.raises(ValueError) as error:
                reader(folder / name)
            assert "\n" not in str(error.value), says
        assert not marker.exists() and not ran, f"{says}: {ran}"
    reached("weights", len(PAYLOADS), asked=8, of="pickles that would run code", case="pickles")
