"""Markdown tables, as model cards, reports and the documents hold them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from purify_engine.config import require


def table(header: Sequence[str], rows: Iterable[Sequence[str]], left: Collection[int] = (0,)) -> str:
    """A Markdown table without a newline at its end; the columns numbered in `left` are aligned left, the others right.

    A `|` in a cell is escaped and a line break becomes a space, so that no cell ends early. ValueError: a row that is longer or
    shorter than the header.
    """
    rule = ["---" if place in left else "---:" for place in range(len(header))]
    lines = [header, rule, *rows]
    for row in lines:
        require(len(row) == len(header), "rows", f"of {len(header)} cells, as the header", list(row))
    return "\n".join(f"| {' | '.join(map(_cell, row))} |" for row in lines)


def _cell(text: str) -> str:
    return " ".join(text.splitlines()).replace("|", "\\|")
