"""`purify --workers`, of a network: the bytes of one process, and every failure told once."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

SETTINGS = ("--part-size", 3, "--batch-size", 2, "--threads", 1, "--decoders", 1)
CIRCUMSTANCES = ("run.json", "events.jsonl", "report.html")  # what differs between two runs


def photos(root):
    """Ten images, one of which is none."""
    levels = np.random.default_rng(0).integers(0, 255, (10, 8, 8), dtype=np.uint8)
    for number, pixels in enumerate(levels):
        path = root / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    (root / "a" / "6.png").write_bytes(b"no image")
    return root


def tree(output):
    files = {path.relative_to(output).as_posix(): path.read_bytes() for path in output.rglob("*") if path.is_file()}
    return {name: content for name, content in files.items() if name not in CIRCUMSTANCES}


@pytest.mark.slow
def test_workers_write_the_bytes_of_one_process(tmp_path, command, small_purifier):
    words = ("purify", photos(tmp_path / "in"))
    for name, how in {"one": (), "two": ("--workers", 2)}.items():
        code, out, said = command(*words, tmp_path / name, "--purifier", small_purifier, *SETTINGS, *how)
        assert code == 3 and "a/6.png" in out, said
    assert tree(tmp_path / "two") == tree(tmp_path / "one") and len(tree(tmp_path / "one")) == 9 + 3
