"""The JSON lines of bench/results by machine, and what may be said of them: medians, and how far quartiles leave them open.

A ratio is taken within one run only, and from the latest run that has both sides. Needs nothing but the standard library and
what reads the lines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from purify_engine.benchmark.harness import read_records

Record = dict[str, Any]


@dataclass(frozen=True)
class Interval:
    """A measured value, and the lowest and highest that the quartiles of its calls allow."""

    value: float
    low: float
    high: float
    run: str = field(default="", compare=False)  # that it is of, where it is of one

    @classmethod
    def of(cls, record: Record) -> Interval:
        """The seconds of a line."""
        return cls(record["median"], record["q25"], record["q75"], record.get("run", ""))

    def times(self, factor: float) -> Interval:
        """In another unit; `factor` is positive."""
        return Interval(factor * self.value, factor * self.low, factor * self.high, self.run)

    def over(self, other: Interval) -> Interval:
        """The ratio: at its lowest where this is low and the other is high."""
        return Interval(self.value / other.value, self.low / other.high, self.high / other.low, max(self.run, other.run))

    @classmethod
    def least(cls, intervals: Iterable[Interval]) -> Interval:
        """Of the smallest of some values, which of them it may be."""
        known = list(intervals)
        ends = zip(*((interval.value, interval.low, interval.high) for interval in known), strict=True)
        return cls(*map(min, ends), min(known, key=lambda interval: interval.value).run)


@dataclass(frozen=True)
class Machine:
    """The lines of one machine, from every file, oldest run first."""

    name: str
    on_gpu: bool
    records: tuple[Record, ...]

    def of(self, **wanted: Any) -> list[Record]:
        """The lines with these values."""
        return [record for record in self.records if all(record.get(key) == value for key, value in wanted.items())]

    def latest(self, *keys: str, **wanted: Any) -> list[Record]:
        """Of the lines with these values, the last for each combination of `keys`, in order of first appearance."""
        lines: dict[tuple[Any, ...], Record] = {}
        for record in self.of(**wanted):
            key = tuple(str(record.get(name)) for name in keys)
            lines[key] = record
        return list(lines.values())

    def together(self, variants: Sequence[str], kind: str = "loop", by: str = "variant", **wanted: Any) -> list[Record] | None:
        """A line of each variant, which is what stands at `by`, all of the latest run that has them all."""
        runs: dict[str, dict[str, Record]] = {}
        for record in self.of(kind=kind, **wanted):
            runs.setdefault(record["run"], {})[record[by]] = record
        whole = [run for _, run in sorted(runs.items()) if all(variant in run for variant in variants)]
        return [whole[-1][variant] for variant in variants] if whole else None

    def times_as_fast(self, ours: str, opponent: str, **wanted: Any) -> Interval | None:
        """How many times the seconds of `opponent` are those of `ours`."""
        pair = self.together((ours, opponent), **wanted)
        return Interval.of(pair[1]).over(Interval.of(pair[0])) if pair else None

    def says(self, run: str | None = None) -> str:
        """The machine's name and the day of a run, the latest by default, with the commit that was measured where it is known."""
        when = run or self.records[-1]["run"]
        commit = self.commit(when)
        return f"{self.name}, {when[:10]}" + (f", commit {commit}" if commit else "")

    def commit(self, run: str) -> str | None:
        """The commit that a run measured, where it is known."""
        return next((card.get("commit") for card in self.of(kind="machine", run=run)), None)

    def when(self, run: str) -> str:
        """The commit of a run, or its day."""
        return self.commit(run) or run[:10] or "–"

    def by_commit(self) -> list[Machine]:
        """Its lines by the commit that they measured, the last measured first; without a commit, by the day."""
        parts: dict[str, list[Record]] = {}
        for record in self.records:
            parts.setdefault(self.when(record["run"]), []).append(record)
        newest = sorted(parts.values(), key=lambda records: records[-1]["run"], reverse=True)
        return [replace(self, records=tuple(records)) for records in newest]


def machines(results: Path) -> list[Machine]:
    """Every machine that has lines, without those of dry runs."""
    lines = read_records(sorted(results.glob("*-*.jsonl")))
    cards = {(card["machine"], card["run"]): card for card in lines if card.get("kind") == "machine"}
    genuine = [line for line in lines if (card := cards.get((line.get("machine"), line.get("run")))) and not card["toy"]]
    known = []
    for name in dict.fromkeys(line["machine"] for line in genuine):
        own = sorted((line for line in genuine if line["machine"] == name), key=lambda line: line["run"])
        known.append(Machine(name, cards[name, own[0]["run"]]["device"] == "cuda", tuple(own)))
    return known


def by_machine(
    table: Callable[[Machine], str],
    results: Path,
    *,
    on_gpu: bool,
    otherwise: str,
    by_commit: bool = False,
    kind: str | None = None,
) -> str:
    """The table of every machine that has one, under its name and the day of its latest run; `otherwise` where none has.

    by_commit: a table of every commit that was measured, so that what stands under a heading is of that commit. kind: of the
    lines that the table is made of, where the machine's latest run may be of another command.
    """
    parts = []
    for machine in machines(results):
        for part in [] if machine.on_gpu != on_gpu else machine.by_commit() if by_commit else [machine]:
            if text := table(part):
                own = [] if kind is None else part.of(kind=kind)
                parts.append(f"{part.says(own[-1]['run'] if own else None)}:\n\n{text}")
    return "\n\n".join(parts) or otherwise
