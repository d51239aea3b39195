"""The table of the faster ways: what each promises, who computes it, where it is chosen and taken, and how near it comes.

All of it but the last is read off the package: the switches themselves, and the functions that ask for them by name.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.core.run import ROOT
from bench.report.lines import Machine, machines
from purify_engine.markdown import table
from purify_engine.ops.switches import SWITCHES

PACKAGE = ROOT / "purify_engine"
ASKED_BY = {"runs", "is_on", "proven"}  # the functions of ops/switches.py that take a name
LARGE = 64e6  # bytes from which a pass is judged by the rate of memory
# The op whose pass over memory a way is, where it is one of ours: of the others a library's kernels decide.
OPS = {"sum_in_norm": "sum_norm_silu", "lean_norm": "group_norm_silu", "fused_sum": "residual_sum", "affine_relu": "affine_relu"}


def ways(results: Path) -> str:
    """One row a switch, and a column for every GPU that was measured."""
    places, measured = entry_points(), [machine for machine in machines(results) if machine.on_gpu]
    header = ("switch", "contract", "by default", "entry point", "engine", "what it does", "where", *map(_column, measured))
    rows = []
    for name, switch in SWITCHES.items():
        entry = ", ".join(f"`{place}`" for place in places[name])
        shares = (share(machine, OPS.get(name)) for machine in measured)
        default = "on" if switch.default else "off"
        rows.append((f"`{name}`", switch.contract, default, entry, switch.engine, switch.says, switch.used, *shares))
    return table(header, rows, left=range(7))


def _column(machine: Machine) -> str:
    return f"of the roofline, {machine.name}"


def share(machine: Machine, op: str | None) -> str:
    """The least and the greatest share of the roofline in 16 bits, over the shapes of at least 64 MB; the caches are cold."""
    if op is None:
        return "–"
    lines = machine.latest("case", kind="op", op=op, engine="triton", cache="cold")
    shares = sorted(100 * line["roofline"] for line in lines if line["bytes"] >= LARGE and "float32" not in line["case"])
    return f"{shares[0]:.0f} to {shares[-1]:.0f} %" if shares else "not measured"


def entry_points(package: Path = PACKAGE) -> dict[str, list[str]]:
    """For every switch the functions that ask for it, as file:function."""
    found: dict[str, list[str]] = {name: [] for name in SWITCHES}
    for path in sorted(package.rglob("*.py")):
        for name, function in _asked(ast.parse(path.read_text(encoding="utf-8"))):
            found[name].append(f"{path.relative_to(package)}:{function}")
    return {name: list(dict.fromkeys(places)) for name, places in found.items()}


def _asked(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """(switch, function) of every call of a function of `ASKED_BY` with the name of a switch."""
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
    for function in functions:
        for call in ast.walk(function):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr in ASKED_BY:
                names = [argument.value for argument in call.args if isinstance(argument, ast.Constant)]
                yield from ((name, function.name) for name in names if name in SWITCHES)


FIGURES: dict[str, Callable[[Path], str]] = {"gpu-table-of-switches": ways}
