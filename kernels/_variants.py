"""What ahead-of-time compilation is told about a kernel: one specialisation, with the types of its arguments written out."""

from __future__ import annotations

from typing import NamedTuple


class Variant(NamedTuple):
    """One specialisation of a kernel. `variants()` of every kernel file lists those that the published networks run."""

    op: str
    kernel: object  # the @triton.jit function
    signature: dict[str, str]  # every argument by name: "*fp32", "i64", ..., "constexpr"
    constexprs: dict[str, object]
    num_warps: int = 4
    num_stages: int = 2
    fp_fusion: bool = True  # a·b + c may be rounded once
