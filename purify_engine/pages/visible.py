"""Names of files as text to show: they may hold line breaks, a terminal's commands, or marks that turn the reading order."""

from __future__ import annotations


def visible(text: object) -> str:
    """`text` in one line, with every character that is not printable as Python's escape: `a\\nb`, `\\x1b[2J`, `\\u202e`.

    So are the bytes of file names that are no UTF-8. Letters of every script stay as they are.
    """
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in str(text))
