"""What the machine code of sum_norm_silu's kernels takes for an element on Hopper, and how it reads and writes images."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

# Instructions for an element where a thread has at least 32 of them: of a norm alone, of one that adds a line (a bias, a time
# embedding), and of one that adds a residual, too. With a skip both ways of reading stand there, and a program goes one; the skip
# is copied behind a sum that is wanted. A processor issues 128 a cycle: at 22, an H200 computes 1.3 elements while its memory
# moves one in bfloat16. Slabs of two tiles have both ways of reading twice, and sums over groups that straddle the tiles.
ENOUGH = 32
_INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+ )?([A-Z][\w.]*)", re.MULTILINE)
_BRANCH = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+ )?BRA(?:\.\w+)*\s[^;]*0x([0-9a-f]+)\s*;", re.MULTILINE)
BUDGETS = {"alone": 22, "line": 24, "residual": 32}
BUDGETS_WITH_SKIP = {"alone": 24, "line": 29, "residual": 36}
OF_TWO_TILES = 3  # more


def elements(variant: Any) -> float | None:
    """How many elements a thread takes through one tile; None if it is another kernel's."""
    cut = variant.constexprs
    return cut["ROWS"] * (cut["FIRST"] + cut.get("SECOND", 0)) / (32 * variant.num_warps) if "FIRST" in cut else None


def per_element(variant: Any, code: str) -> float | None:
    """The instructions that a thread goes through, over its elements: a loop over the tiles of a chunk as often as it is run."""
    each, tiles = elements(variant), variant.constexprs.get("BLOCKS", 1)
    if each is None:
        return None
    rounds = tiles - 1 if "PASS" in variant.constexprs else tiles  # the moments of a chunk's first tile stand before the loop
    places = [int(place, 16) for place, name in _INSTRUCTION.findall(code) if name != "NOP"]
    loops = [(int(end, 16), int(start, 16)) for end, start in _BRANCH.findall(code) if int(start, 16) < int(end, 16)]
    again = sum(max(rounds - 1, 0) * sum(start <= place <= end for place in places) for end, start in loops)
    return round((len(places) + again) / (each * tiles), 1)


def faults(variant: Any, code: str) -> Iterator[str]:
    """More instructions than the budget; images that are not read and written 16 bytes at a time."""
    served, each = elements(variant), per_element(variant, code)
    if served is None or each is None:
        return
    given = {name for name, kind in variant.signature.items() if kind.startswith("*")}
    added = "residual" if "residual_ptr" in given else "line" if given & {"bias_ptr", "temb_ptr"} else "alone"
    budget = (BUDGETS_WITH_SKIP if "skip_ptr" in given else BUDGETS)[added]
    budget += OF_TWO_TILES if "skip_ptr" in given and variant.constexprs.get("SECOND", 0) else 0
    if served >= ENOUGH and each > budget:
        yield f"{each} instructions an element, of {budget}"
    names = instructions(code)
    if served >= ENOUGH // 2 and ("LDG.E.128" not in names or ("y_ptr" in variant.signature and "STG.E.128" not in names)):
        yield "images are not read and written 16 bytes at a time"


def instructions(code: str) -> list[str]:
    """The names in a disassembly, with what modifies them: "LDG.E.128"."""
    return [name for _, name in _INSTRUCTION.findall(code)]
