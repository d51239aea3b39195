"""report.html: what became of a data set, on one page, from the records beside its output; small for a million images, too."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from purify_engine.data.contact_sheet import Chosen, Classify, Sheet, chosen, sheet
from purify_engine.data.events import read_events
from purify_engine.data.items import ImageShape, Source
from purify_engine.data.manifest_files import lines_that_count
from purify_engine.data.throughput import Curve, Session, curve, sessions, time_of
from purify_engine.files import write_text
from purify_engine.pages import render

TEMPLATE = "data/report.html.j2"
LISTED = 100  # failures by name
LETTERS = 500  # of a name, a reason, a setting
EXAMPLES = 3  # of each reason
USUAL = ("start", "resumed", "progress", "part", "failure", "end")  # events that are no trouble
REASONS = 20  # the most frequent


@dataclass
class Reasons:
    """What was not purified, counted by reason, with a few names each and the first ones in full."""

    count: int = 0
    by_reason: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    listed: list[tuple[str, str]] = field(default_factory=list)

    def add(self, name: str, reason: str) -> None:
        kind = re.sub(r"\d+", "N", re.sub(r"'[^']*'", "'…'", reason[:LETTERS]))  # sizes and names differ from image to image
        if kind not in self.by_reason and len(self.by_reason) >= 1000:
            kind = "other reasons"
        self.count += 1
        self.by_reason[kind] += 1
        examples = self.examples.setdefault(kind, [])
        if len(examples) < EXAMPLES:
            examples.append(name[:LETTERS])
        if len(self.listed) < LISTED:
            self.listed.append((name[:LETTERS], reason[:LETTERS]))

    def rows(self) -> list[tuple[str, int, list[str]]]:
        """The most frequent reasons: how often, and whose."""
        return [(kind, count, self.examples[kind]) for kind, count in self.by_reason.most_common(REASONS)]


@dataclass
class Counts:
    """What the manifest says of all images."""

    ok: int = 0
    parts: int = 0
    bytes: int = 0
    failed: Reasons = field(default_factory=Reasons)
    sizes: Counter[str] = field(default_factory=Counter)


def write_report(
    output: Path, *, source: Source | None = None, classify: Classify | None = None, path: Path | None = None
) -> Path:
    """Write the report of the run whose output is `output`, by default as the record report.html; its path.

    source: where the images came from; by default what run.json names, and where that is gone there is no contact sheet.
    classify: what a classifier reads in an image, for the contact sheet.
    ValueError where no run's records lie there, OSError where the report cannot be written.
    """
    run_path = record_of(output, "run.json")
    run = _run(run_path)
    counts = count(records(output))
    skipped = Reasons()
    for entry in _lines(record_of(output, "skipped.jsonl")):
        skipped.add(str(entry.get("name")), str(entry.get("reason")))
    diaries = [read_events(diary) for diary in _diaries(output)]
    events = sorted(chain(*diaries), key=lambda event: event["time"])
    processes = [sessions(diary) for diary in diaries]
    known, resumed = list(chain(*processes)), sum(max(0, len(own) - 1) for own in processes)
    pictures, why_none = _pictures(output, run, counts.parts, source, classify)
    path = path or record_of(output, "report.html")
    items = run.get("identity", {}).get("source", {}).get("items")
    left = max(0, items - counts.ok - counts.failed.count) if isinstance(items, int) else 0
    html = render(
        TEMPLATE,
        title=f"Purification of {Path(str(run['source'])).name}" if "source" in run else "Purification",
        verdict=verdict(counts, skipped.count, left),
        about=about({**run, "output": str(output), "resumed": resumed}, counts, events, known),
        counts=counts,
        skipped=skipped,
        left=left,
        curve=shown if (shown := curve(known)) is not None and shown.seconds >= 1 else None,
        troubles=[event for event in events if event["event"] not in USUAL][:LISTED],
        drawn=drawn,
        clock=clock,
        sheet=pictures,
        why_no_sheet=why_none,
        settings=settings(run),
    )
    write_text(path, html)
    return path


def purifier_of(output: Path) -> tuple[str | None, str | None]:
    """The name of the purifier of a run and its revision, as they were asked for; ValueError where no run's records lie there."""
    run = _run(record_of(output, "run.json"))
    name, revision = run.get("purifier"), run.get("revision")
    return name if isinstance(name, str) else None, revision if isinstance(revision, str) else None


def record_of(output: Path, name: str) -> Path:
    """Where the record `name` of an output lies: in the root of a folder, beside a file under its name."""
    return output / name if output.is_dir() else output.with_name(f"{output.stem}.{name}")


def records(output: Path) -> Iterator[dict[str, Any]]:
    """The records of the committed parts that count, of all shares of the run; in the memory of one."""
    return map(json.loads, lines_that_count(record_of(output, "manifest.jsonl")))


def count(found: Iterable[Mapping[str, Any]]) -> Counts:
    """Add up the records of all parts."""
    counts = Counts()
    for record in found:
        counts.ok += record["ok"]
        counts.parts += 1
        counts.bytes += sum(file[1] for file in record["files"])
        counts.sizes.update(record.get("sizes", {}))
        for _, name, reason in record["failed"]:
            counts.failed.add(str(name), str(reason))
    return counts


def verdict(counts: Counts, skipped: int, left: int) -> str:
    """What became of the images, in a sentence."""
    total = counts.ok + counts.failed.count + left
    if counts.ok == total:
        said = f"All {total:,} images are purified."
    else:
        others = [f"{counts.failed.count:,} failed"] if counts.failed.count else []
        others += [f"{left:,} are left: the same command goes on"] if left else []
        said = f"{counts.ok:,} of {total:,} images are purified; {', '.join(others)}."
    files = "file is no image and was" if skipped == 1 else "files are no images and were"
    return f"{said} {skipped:,} {files} skipped." if skipped else said


def about(
    run: Mapping[str, Any], counts: Counts, events: Sequence[dict[str, Any]], known: Sequence[Session]
) -> dict[str, str]:
    """What stands on top: where from, where to, by what, when, how fast."""
    where = run.get("gpu") or run.get("device")
    held = max((event["rss_bytes"] for event in events if isinstance(event.get("rss_bytes"), int)), default=0)
    seconds, done = time_of(known), sum(session.done for session in known)
    facts = {
        "source": run.get("source"),
        "output": run["output"],
        "purifier": run.get("purifier"),
        "computed": f"on {where} in {run.get('precision')}" if where else None,
        "began": _minute(events[0]["time"]) if events else None,
        "last heard of": _minute(events[-1]["time"]) if events else None,
        "speed": f"{done / seconds:,.1f} images a second over {clock(seconds)}" if seconds > 0 and done > 0 else None,
        "resumed": {0: "never", 1: "once"}.get(run["resumed"], f"{run['resumed']} times"),
        "memory at most": f"{held / 2**30:.2f} GiB" if held else None,
        "written": size(counts.bytes) if counts.bytes else None,
        "sizes": ", ".join(f"{size}: {number:,}" for size, number in counts.sizes.most_common(8)) or None,
    }
    return {name: str(value) for name, value in facts.items() if value}


def settings(run: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """The groups of run.json for reading: configuration, what is pinned, policies, versions, all else."""
    groups = {"Configuration": ("config",), "Pinned": ("pinned", "identity"), "Policies": ("policies",)}
    named = {name for names in groups.values() for name in names}
    shown = {title: {k: v for name in names for k, v in _flat(run.get(name, {}), name)} for title, names in groups.items()}
    shown["Everything else"] = {k: v for name, value in run.items() if name not in named for k, v in _flat(value, name)}
    return {title: values for title, values in shown.items() if values}


def drawn(shown: Curve) -> str:
    """The curve as points of a polygon in a box of 100 by 100, its floor included."""
    steps = [(100 * place / len(shown.rates), 100 - 100 * rate / max(shown.most, 1e-9)) for place, rate in enumerate(shown.rates)]
    ends = [100 * (place + 1) / len(shown.rates) for place in range(len(shown.rates))]
    corners = [f"{x:.2f},{y:.2f} {end:.2f},{y:.2f}" for (x, y), end in zip(steps, ends, strict=True)]
    return " ".join(["0,100", *corners, "100,100"])


def size(count: int) -> str:
    """Bytes for people."""
    for unit, large in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= large:
            return f"{count / large:.1f} {unit}"
    return f"{count} bytes"


def clock(seconds: float) -> str:
    """A time for people."""
    for unit, long in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * long:
            return f"{seconds / long:.1f} {unit}"
    return f"{seconds:.1f} seconds"


def _pictures(
    output: Path, run: Mapping[str, Any], parts: int, source: Source | None, classify: Classify | None
) -> tuple[Sheet | None, str]:
    """The contact sheet, or why there is none: no trouble with it costs the report."""
    try:
        if source is None:
            from purify_engine.data.sources import open_source

            if "source" not in run:
                return None, "run.json does not say where the images are from"
            channels = run["identity"]["images"]["channels"]
            column = run["identity"]["source"].get("column")
            source = open_source(Path(run["source"]), ImageShape(channels, clip=True), column)
        found: Iterable[Chosen] = chosen(records(output), parts)
        return sheet(source, output, found, classify), ""
    except (OSError, ValueError, LookupError, TypeError) as reason:
        return None, str(reason)


def _diaries(output: Path) -> list[Path]:
    """events.jsonl, and those of shares, such as events.0-of-16.jsonl."""
    whole = record_of(output, "events.jsonl")
    named = re.compile(re.escape(whole.name.removesuffix(".jsonl")) + r"(\.\d+-of-\d+)?\.jsonl")
    return sorted(path for path in whole.parent.iterdir() if named.fullmatch(path.name))


def _run(path: Path) -> dict[str, Any]:
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"output must be one that `purify` wrote: there is no {str(path)!r}") from None
    except ValueError as broken:
        raise ValueError(f"run.json must be as `purify` wrote it, got {str(path)!r}: {broken}") from broken
    if not isinstance(run, dict):
        raise ValueError(f"run.json must be as `purify` wrote it, got {str(path)!r}")
    return run


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a file of JSON lines, one at a time; those that are none are left out."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        for line in file:
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict):
                yield entry


def _flat(value: Any, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}")
    elif not isinstance(value, list) or len(value) < 50:
        yield name, (value if isinstance(value, str) else json.dumps(value))[:LETTERS]


def _minute(time: str) -> str:
    return time[:16].replace("T", " ") + " UTC"
