"""`purify-engine verify`: is an output whole, and what was written?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from purify_engine.cli.console import Meter, say
from purify_engine.pages import visible

if TYPE_CHECKING:
    from purify_engine.data.verification import Verified

NOT_PROVED = 4
SAID = 20  # problems that are printed; --json has all
MEND = "to have files made again, remove those that are damaged and give the command of the run with --retry-failed"


def verify(output: Path, *, source: Path | None = None, json: Annotated[bool, Parameter(negative="")] = False) -> int:
    """Prove that OUTPUT is what `purify` wrote: every file by its size and SHA-256, exactly one record an image, nothing else.

    Neither the source nor the purifier is needed. The exit code is 0 where all of it holds, else 4.

    Parameters
    ----------
    output:
        The folder or the file that `purify` wrote.
    source:
        What was purified: is it still the same, by the names and the number of its images?
    json:
        Print what was found as one JSON line.
    """
    from purify_engine.data.verification import verify as verify_output

    with Meter("verify") as meter:
        found = verify_output(output, source, progress=lambda done, total: meter.update(done, total))
    say({**found.as_record(), "output": str(output)}, _text(found, output), as_json=json)
    return NOT_PROVED if found.problems else 0


def _text(found: Verified, output: Path) -> str:
    counts = f"{found.ok} purified images and {found.failed} that failed, {found.files} files, {found.bytes} bytes"
    if not found.problems:
        return f"{output} is whole: {counts}, all as recorded"
    more, many = len(found.problems) - SAID, f"{len(found.problems)} problem{'s' * (len(found.problems) > 1)}"
    said = [f"{output} is not what was written: {many} ({counts} as recorded)", *map(visible, found.problems[:SAID])]
    return "\n  ".join(said + ([f"and {more} more: --json lists all"] if more > 0 else [])) + f"\n{MEND}"
