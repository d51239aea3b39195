"""The commands of docs/offline.md for folders, and its job script, run as they stand."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli.conftest import command  # noqa: F401  (a fixture)

PAGE = Path(__file__).parents[1] / "docs" / "offline.md"
BLOCKS = re.findall(r"```sh\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.S)
ARRAY = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_MAX": "15", "SLURM_ARRAY_TASK_COUNT": "16"}


def commands_on_photos():
    """Words of each command that purifies photos/, or looks at what it made, in their order."""
    lines = [shlex.split(line, comments=True) for block in BLOCKS if "#SBATCH" not in block for line in block.splitlines()]
    return [words[1:] for words in lines if words[:1] == ["purify-engine"] and {"photos/", "clean/"} & set(words[2:3])]


def images():
    return {path.relative_to("clean").as_posix(): path.read_bytes() for path in sorted(Path("clean").rglob("*.png"))}


@pytest.fixture
def workplace(tmp_path, small_purifier, monkeypatch):
    """A folder with photos/ and my-purifier/, in which the command runs."""
    shutil.copytree(small_purifier, tmp_path / "my-purifier")
    for number in range(5):
        path = tmp_path / "photos" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), 40 * number, np.uint8)).save(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_commands_run_and_shares_make_what_one_run_makes(workplace, command):  # noqa: F811
    seen, plain = [], {}
    for words in commands_on_photos():
        elsewhere = {"--workers", "--engine"} & set(words)  # processes take their time: the plan reads all options, too
        if "--shard-index" in words and "0" in words:
            plain = images()
            shutil.rmtree("clean")
        code, _, said = command(*words, *(["--plan"] if elsewhere else []))
        assert code == 0, (words, said)
        seen.append(words[0] if not elsewhere else min(elsewhere))
    assert seen[:4] == ["purify", "purify", "verify", "report"] and {"--workers", "--engine"} <= set(seen)
    assert len(plain) == 5 and images() == plain


def test_the_job_script_does_the_share_of_its_task(workplace, command, monkeypatch):  # noqa: F811
    (script,) = [block for block in BLOCKS if "#SBATCH" in block]
    (workplace / "job.sh").write_text(script)
    stand_in = workplace / "bin" / "purify-engine"
    stand_in.parent.mkdir()
    stand_in.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    stand_in.chmod(0o755)
    with_stand_in = {"PATH": f"{stand_in.parent}:{os.environ['PATH']}"}
    job = subprocess.run(["bash", "job.sh"], env=with_stand_in, capture_output=True, text=True, check=True)
    asked = job.stdout.split("\n")[:-1]
    for name, value in ARRAY.items():
        monkeypatch.setenv(name, value)
    for task in ("15", "0"):  # all images are in the first part
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", task)
        code, out, said = command(*asked)
        assert code == 0 and f"share {task} of 16 (from the task of Slurm's job array)" in said
        assert ("5 images are left to other shares" in out) == (task == "15")
    assert len(images()) == 5 and command("verify", "clean/")[0] == 0
