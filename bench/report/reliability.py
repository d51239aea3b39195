"""The table of what `make soak` reached: how often each kind of accident was made to happen, without an image lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from purify_engine.files import read_json_lines
from purify_engine.markdown import table

RESULT = "reliability.jsonl"
NOT_YET = "Not measured yet: `make soak` writes it."

# What happens, and what holds all the same; in the order of the table.
AREAS = {
    "crash points": "a run is killed, or its disk full or broken, at one system call, and then resumed: "
    "nothing is lost, duplicated or torn, and the output is that of a run without an accident, byte for byte",
    "kill -9": "a run is killed at random, its resumed run too, and that one's: the same holds",
    "disk full": "a run ends in one line that names the file, and leaves no temporary one; resumed, the same holds",
    "images": "damaged image files: no crash, no hang, one record each",
    "bombs": "images too large to decode are refused by their headers",
    "tar": "crafted and damaged archives: nothing is written elsewhere, every truncation is reported",
    "tables": "damaged Parquet files, Arrow streams and .npz files: no crash, one record a row, every refusal one line",
    "weights": "damaged headers of checkpoints are refused in one line, and code in pickles never runs",
    "determinism": "the same bytes for any number of workers, any order of parts, any point of resuming",
    "lost workers": "one of several processes is killed: its parts are done again, and the bytes are those of one process",
    "NaN": "an image that comes out as no number never touches its batch",
    "out of memory": "memory runs out at an allocation: the same images are tried again in a smaller batch, none is lost",
    "memory": "what a long run holds does not grow",
}


def reliability(results: Path) -> str:
    """A row for each area and case, by the latest line of it."""
    path = results / RESULT
    latest: dict[tuple[str, str], dict[str, Any]] = {}
    for line in read_json_lines(path) if path.exists() else ():
        latest[line["area"], line["case"]] = line
    if not latest:
        return NOT_YET
    order = list(AREAS)
    rows = [_row(latest[key], AREAS[key[0]]) for key in sorted(latest, key=lambda key: (order.index(key[0]), key[1]))]
    return table(("area", "what holds", "asked for", "reached", "test", "machine, date"), rows, left=(0, 1, 4, 5))


def _row(line: dict[str, Any], promise: str) -> tuple[str, ...]:
    area = f"{line['area']}: {line['case']}" if line["case"] else line["area"]
    counts = (f"{count:,} {line['of']}" for count in (line["asked"], line["count"]))
    return area, promise, *counts, f"`{line['test'].split('[')[0]}`", f"{line['machine']}, {line['date']}"


FIGURES: dict[str, Callable[[Path], str]] = {"reliability": reliability}
