"""What the command line writes appears whole: under its own name only by a rename, as strace sees it."""

import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.system


def test_every_purified_image_is_renamed_into_place(tmp_path, small_purifier):
    assert shutil.which("strace"), "strace is missing; install it to run this check"
    photos = tmp_path / "photos"
    photos.mkdir()
    for index in range(3):
        Image.fromarray(np.full((8, 8), 60 * index, np.uint8)).save(photos / f"{index}.png")
    log, clean = tmp_path / "log", tmp_path / "clean"
    command = [sys.executable, "-m", "purify_engine", "purify", photos, clean, "--purifier", small_purifier]
    traced = ["strace", "-f", "-qq", "-e", "trace=openat,rename,renameat,renameat2", "-o", log, *command]
    subprocess.run(list(map(str, traced)), check=True, capture_output=True, timeout=300)
    calls = log.read_text()
    for path in sorted(clean.rglob("*")):
        if path.is_file() and path.name != "events.jsonl":  # a diary, which nothing is resumed from: lines are added to it
            name = re.escape(str(path))
            assert re.search(rf'rename\w*\(.*"{name}"', calls), f"{path.name} was not renamed into place"
            if path.name == "manifest.jsonl":
                continue  # lines are added to it while the run goes on
            assert not re.search(rf'openat\([^"]*"{name}", [^)]*O_(WRONLY|RDWR)', calls), f"{path.name} was written in place"
    assert len(list(clean.glob("*.png"))) == 3
