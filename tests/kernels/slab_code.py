"""What the machine code of sum_norm_silu's kernels takes for an element on Hopper, and how it reads and writes images."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

# Instructions for an element where a thread has at least 32 of them, by (all that may be added is, there is a skip). Of a skip
# both ways of reading stand there, and a program goes one. A processor issues 128 a cycle: at 22, an H200 computes 1.3 elements
# while its memory moves one in bfloat16.
BUDGET = {(False, False): 22, (False, True): 24, (True, False): 30, (True, True): 36}
ENOUGH = 32


def elements(variant: Any) -> float | None:
    """For how many elements of a thread there is code; None if it is another kernel's.

    A loop stands there once, and so does a tile's work; the moments of a chunk's first tile stand before the loop.
    """
    cut = variant.constexprs
    if "FIRST" not in cut:
        return None
    tiles = 2 if "PASS" in cut and cut["BLOCKS"] > 1 else 1
    return tiles * cut["ROWS"] * (cut["FIRST"] + cut.get("SECOND", 0)) / (32 * variant.num_warps)


def per_element(variant: Any, code: str) -> float | None:
    """All instructions that stand there, over the elements that they serve."""
    served = elements(variant)
    return None if served is None else round(sum(name != "NOP" for name in instructions(code)) / served, 1)


def faults(variant: Any, code: str) -> Iterator[str]:
    """More instructions than the budget; images that are not read and written 16 bytes at a time."""
    served, each = elements(variant), per_element(variant, code)
    if served is None or each is None:
        return
    given = {name for name, kind in variant.signature.items() if kind.startswith("*")}
    budget = BUDGET["residual_ptr" in given, "skip_ptr" in given]
    if served >= ENOUGH and each > budget:
        yield f"{each} instructions an element, of {budget}"
    names = instructions(code)
    if "LDG.E.128" not in names or ("y_ptr" in variant.signature and "STG.E.128" not in names):
        yield "images are not read and written 16 bytes at a time"


def instructions(code: str) -> list[str]:
    """The names in a disassembly, with what modifies them: "LDG.E.128"."""
    return re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z][\w.]*)", code, re.MULTILINE)
