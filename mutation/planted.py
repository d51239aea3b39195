"""Faults as an engineer could make them, planted one at a time in a copy of the tree: do the tests that ought to notice do so?"""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Queue

from mutation.scratch import build, copy_tree, run_tests

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib  # type: ignore[no-redef]

FAULTS = Path(__file__).parent / "faults"
BAR = 0.9  # share of the faults that must be noticed


@dataclass(frozen=True)
class Fault:
    """`old` stands exactly once in `file`; with `new` in its place, one of `tests` must fail."""

    name: str
    file: str
    says: str  # what is wrong then
    old: str
    new: str
    tests: tuple[str, ...]  # files or folders; a pattern may name files that are not there

    def planted_in(self, source: str) -> str:
        """`source` with the fault; ValueError where the old text does not stand in it exactly once."""
        times = source.count(self.old)
        if times != 1:
            raise ValueError(f"{self.name}: the text to replace must stand once in {self.file}, got {times} times:\n{self.old}")
        return source.replace(self.old, self.new)

    @property
    def is_compiled(self) -> bool:
        return self.file.startswith("csrc/")


def load_faults(folder: Path = FAULTS) -> list[Fault]:
    """All faults of all lists, by name."""
    faults = []
    for path in sorted(folder.glob("*.toml")):
        for name, entry in tomllib.loads(path.read_text(encoding="utf-8")).items():
            faults.append(Fault(name, **{**entry, "tests": tuple(entry["tests"])}))
    return faults


def run(root: Path, names: list[str], jobs: int = 1) -> int:
    """Plant the faults `names`, or all; print what noticed each, and the score. 0 where the score reaches the bar."""
    faults = load_faults()
    unknown = set(names) - {fault.name for fault in faults}
    if unknown:
        raise SystemExit(f"no such fault: {', '.join(sorted(unknown))}")
    chosen = [fault for fault in faults if not names or fault.name in names]
    noticed = plant_all(root, chosen, jobs)
    share = sum(noticed) / len(chosen)
    print(f"score: {sum(noticed)} of {len(chosen)} planted faults were noticed = {100 * share:.1f} % (bar {100 * BAR:.0f} %)")
    return 0 if share >= BAR else 1


def plant_all(root: Path, faults: list[Fault], jobs: int = 1) -> list[bool]:
    """Whether each fault was noticed. A test that fails without any fault is named, and counts for nothing."""
    with tempfile.TemporaryDirectory(prefix="planted-") as folder, ThreadPoolExecutor(jobs) as pool:
        trees: Queue[Path] = Queue()
        for job in range(jobs):
            copy_tree(root, Path(folder, str(job)))
            trees.put(Path(folder, str(job)))
        copy_tree(root, Path(folder, "sound"))
        sound = _Sound(Path(folder, "sound"))

        def examine(fault: Fault) -> bool:
            tests = named_tests(fault, sound.tree)
            without = tuple(name for test in tests for name in sound.failing(test))
            tree = trees.get()
            try:
                return _examine(tree, fault, tests, without)
            finally:
                trees.put(tree)

        return list(pool.map(examine, faults))


def named_tests(fault: Fault, tree: Path) -> tuple[str, ...]:
    """The files and folders of `tree` that a fault's tests are; FileNotFoundError where there are none."""
    found = tuple(sorted({path.relative_to(tree).as_posix() for pattern in fault.tests for path in tree.glob(pattern)}))
    if not found:
        raise FileNotFoundError(f"{fault.name}: none of {', '.join(fault.tests)} is there")
    return found


class _Sound:
    """A tree without a fault: which tests fail in it, by file or folder. Each is run once, when it is first asked for."""

    def __init__(self, tree: Path) -> None:
        self.tree = tree
        self._failing: dict[str, tuple[str, ...]] = {}
        self._turn = threading.Lock()

    def failing(self, tests: str) -> tuple[str, ...]:
        with self._turn:
            if tests not in self._failing:
                self._failing[tests] = run_tests(self.tree, (tests,), stop=False).failed
                for name in self._failing[tests]:
                    print(f"fails without a fault, and counts for nothing: {name}", flush=True)
            return self._failing[tests]


def _examine(tree: Path, fault: Fault, tests: tuple[str, ...], without: tuple[str, ...]) -> bool:
    started, path = time.monotonic(), tree / fault.file
    source, extensions = path.read_text(encoding="utf-8"), list((tree / "purify_engine").glob("_C*.so"))
    for extension in extensions if fault.is_compiled else ():
        shutil.copy2(extension, extension.with_suffix(".kept"))
    path.write_text(fault.planted_in(source), encoding="utf-8")
    try:
        if fault.is_compiled:
            build(tree)
        outcome = run_tests(tree, tests, stop=True, without=without)
    finally:
        path.write_text(source, encoding="utf-8")
        for extension in extensions if fault.is_compiled else ():
            extension.with_suffix(".kept").replace(extension)
    by = f"noticed by {outcome.failed[0] if outcome.failed else 'a failure to collect'}" if not outcome.passed else "SURVIVED"
    print(f"{fault.name}: {by} ({time.monotonic() - started:.0f} s)", flush=True)
    return not outcome.passed
