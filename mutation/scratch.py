"""Copies of the working tree to plant faults in: the tree itself is never touched."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

# Without what needs more tools or minutes: what `make check` runs.
PYTEST = ("-q", "-p", "no:cacheprovider", "-m", "not slow and not soak and not system and not integration")
SECONDS = 600  # more than any of the named tests takes: a fault that makes them hang is noticed
_FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+\.py(?:::.+?)?)(?: - .*)?$", re.MULTILINE)


@dataclass(frozen=True)
class Outcome:
    """What a run of pytest said: whether all passed, which did not, and its output."""

    passed: bool
    failed: tuple[str, ...]
    output: str


def copy_tree(root: Path, to: Path) -> None:
    """The files that git knows or would add, as they are now, and the built extensions; symbolic links stay links."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=root, capture_output=True, check=True
    )
    built = [path.relative_to(root).as_posix() for path in (root / "purify_engine").glob("*.so")]
    for name in [*listed.stdout.decode().split("\0"), *built]:
        source, target = root / name, to / name
        if name and (source.is_file() or source.is_symlink()):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target, follow_symlinks=False)


def settings(tree: Path) -> dict[str, str]:
    """The environment in which `tree` is what Python imports; compiled files would outlive the source they are of."""
    return {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1", "PURIFY_ENGINE_CUDA": "0"}


def run_tests(tree: Path, tests: tuple[str, ...], *, stop: bool, without: tuple[str, ...] = ()) -> Outcome:
    """pytest over `tests` in `tree`; `stop` at the first failure, for one fault, and leave out the tests `without`."""
    skipped = [f"--deselect={name}" for name in without]
    command = [sys.executable, "-m", "pytest", *PYTEST, *(("-x",) if stop else ()), *skipped, *tests]
    how = {"cwd": tree, "env": settings(tree), "capture_output": True, "text": True, "check": False}
    try:
        done = subprocess.run(command, timeout=SECONDS if stop else None, **how)
    except subprocess.TimeoutExpired:
        return Outcome(False, (f"no end within {SECONDS} s",), "")
    if done.returncode < 0:
        return Outcome(False, (f"a crash, signal {-done.returncode}",), done.stdout)
    # 2, a file that cannot be collected, is what a fault may well do, and a sound tree does not. 5, that nothing was selected, is
    # neither a pass nor a test that noticed anything.
    if done.returncode not in ((0, 1, 2) if stop else (0, 1)):
        raise RuntimeError(f"pytest could not run {' '.join(tests)} (exit code {done.returncode}):\n{done.stdout}{done.stderr}")
    return Outcome(done.returncode == 0, tuple(_FAILED.findall(done.stdout)), done.stdout)


def build(tree: Path) -> None:
    """Compile the extension of `tree` in place; RuntimeError with the compiler's words where it does not compile."""
    command = [sys.executable, "setup.py", "build_ext", "--inplace", "--force"]
    done = subprocess.run(command, cwd=tree, env=settings(tree), capture_output=True, text=True, check=False)
    if done.returncode or "error:" in done.stderr:
        raise RuntimeError(f"the extension does not compile:\n{done.stderr[-2000:]}")
