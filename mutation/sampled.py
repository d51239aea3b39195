"""A sample of mutmut's mutants of one floor of the package, each tested by that floor's own tests.

mutmut mutates functions that have no decorator; what stands at the top of a module or a class is left to the planted faults.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import random
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

from mutation.scratch import copy_tree, run_tests, settings
from mutation.words import same_but_for_words

# The tests of a floor: its own, and no others that happen to pass through it.
FLOORS = {
    "reference": ("tests/reference",),
    "engine": ("tests/engine",),
    "evaluation": ("tests/evaluation",),
    "training": ("tests/training",),
    "data": ("tests/data",),
}
BAR = 0.8  # share of the sample that must be noticed
NOTICED = ("killed", "timeout", "segfault", "caught by type check")
CONFIGURATION = """
[tool.mutmut]
source_paths = ["purify_engine"]
only_mutate = ["purify_engine/{floor}/*"]
also_copy = {beside}
pytest_add_cli_args_test_selection = {tests}
pytest_add_cli_args = {arguments}
process_isolation = "forkserver"
track_dependencies = false
use_git_change_detection = false
"""


def run(root: Path, floor: str, sample: int, seed: int, jobs: int = 1) -> int:
    """Test `sample` mutants of `floor` (0: all of them), and print what survived. 0 where the score reaches the bar.

    What was tested is kept in build/mutants, so that an interrupted run goes on; a changed tree starts anew.
    """
    tree = root / "build" / "mutants" / floor
    _prepare(root, tree, floor)
    mutants = candidates(tree, floor)
    names = sorted(mutants)
    chosen = random.Random(f"{floor} {seed}").sample(names, min(sample or len(names), len(names)))
    waiting = [name for name in chosen if _verdicts(tree).get(name, "not checked") == "not checked"]
    if waiting:
        print(f"{floor}: testing {len(waiting)} of {len(names)} mutants; progress in {tree / 'mutmut.log'}", flush=True)
        _run_mutmut(tree, waiting, jobs)
    verdicts = _verdicts(tree)
    return _report(floor, seed, {name: verdicts.get(name, "not checked") for name in chosen}, mutants)


def candidates(tree: Path, floor: str) -> dict[str, str]:
    """mutmut's mutants of a floor by name, each with its difference; without those that change nothing but words."""
    from mutmut.mutation.file_mutation import mutate_file_contents
    from mutmut.utils.file_utils import change_cwd
    from mutmut.utils.format_utils import get_mutant_name

    mutants = {}
    with change_cwd(tree):  # where mutmut looks for its configuration
        for path in sorted(Path("purify_engine", floor).rglob("*.py")):
            mutated = mutate_file_contents(str(path), path.read_text(encoding="utf-8"))
            lines, spans = mutated.code.splitlines(), mutated.line_span_by_function_name
            functions = {name: textwrap.dedent("\n".join(lines[span.start - 1 : span.end])) for name, span in spans.items()}
            for name in mutated.mutant_names:
                original = functions[name[: name.rindex("__mutmut_")] + "__mutmut_orig"]
                if not same_but_for_words(original, functions[name]):
                    mutants[get_mutant_name(path, name)] = _difference(original, functions[name])
    return mutants


def _difference(original: str, mutant: str) -> str:
    lines = difflib.ndiff(original.splitlines()[1:], mutant.splitlines()[1:])  # the first lines hold the names
    signature = difflib.ndiff(original.splitlines()[:1], mutant.splitlines()[:1])
    return "\n".join(f"    {line}" for line in [*lines, *signature] if line[:1] in "+-" and "__mutmut_" not in line)


def _prepare(root: Path, tree: Path, floor: str) -> None:
    """A copy of the working tree with mutmut's configuration, made anew where the tree has changed."""
    fresh = tree.with_name(f"{floor}.next")
    shutil.rmtree(fresh, ignore_errors=True)
    copy_tree(root, fresh)
    digest = hashlib.sha256()
    for path in sorted(path for part in ("purify_engine", "tests", "mutation") for path in (fresh / part).rglob("*.*")):
        digest.update(path.relative_to(fresh).as_posix().encode() + path.read_bytes())
    stamp = fresh / "stamp"
    stamp.write_text(digest.hexdigest())
    if (tree / "stamp").exists() and (tree / "stamp").read_text() == stamp.read_text():
        shutil.rmtree(fresh)
        return
    failing = run_tests(fresh, FLOORS[floor], stop=False).failed
    for name in failing:
        print(f"fails without a fault, and is left out: {name}", flush=True)
    arguments = ["-p", "no:cacheprovider", "-m", "not slow and not soak and not system and not integration"]
    text = CONFIGURATION.format(
        floor=floor,
        beside=json.dumps([path.name for path in fresh.iterdir()] + ["purify_engine/kernels"]),
        tests=json.dumps(FLOORS[floor]),
        arguments=json.dumps([*arguments, *(f"--deselect={name}" for name in failing)]),
    )
    with (fresh / "pyproject.toml").open("a", encoding="utf-8") as file:
        file.write(text)
    shutil.rmtree(tree, ignore_errors=True)
    fresh.rename(tree)


def _run_mutmut(tree: Path, names: list[str], jobs: int) -> None:
    """Forked workers and threads of OpenMP do not go together: one thread a worker."""
    environment = {**settings(tree), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    del environment["PYTHONPATH"]  # the mutated copy lies below the tree, and is found first
    command = [Path(sys.executable).with_name("mutmut"), "run", "--max-children", str(jobs), *names]
    with (tree / "mutmut.log").open("w", encoding="utf-8") as log:
        done = subprocess.run(command, cwd=tree, env=environment, stdout=log, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        raise RuntimeError(f"mutmut ended with exit code {done.returncode}; see {tree / 'mutmut.log'}")


def _verdicts(tree: Path) -> dict[str, str]:
    """What mutmut has found so far, by mutant."""
    from mutmut.stats import status_by_exit_code

    codes: dict[str, int | None] = {}
    for path in (tree / "mutants" / "purify_engine").rglob("*.meta"):
        codes |= json.loads(path.read_text(encoding="utf-8"))["exit_code_by_key"]
    return {name: status_by_exit_code[code] for name, code in codes.items()}


def _report(floor: str, seed: int, verdicts: dict[str, str], mutants: dict[str, str]) -> int:
    noticed = [name for name, verdict in verdicts.items() if verdict in NOTICED]
    for name, verdict in sorted(verdicts.items()):
        if verdict not in NOTICED:
            print(f"{verdict}: {name}\n{mutants[name]}")
    share = len(noticed) / len(verdicts)
    told = f"{len(noticed)} of {len(verdicts)} mutants (of {len(mutants)}, seed {seed}) were noticed = {100 * share:.1f} %"
    print(f"score of {floor}: {told} (bar {100 * BAR:.0f} %)")
    return 0 if share >= BAR else 1
