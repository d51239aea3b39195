"""Is it right on this device? Kernels against float64, the graph against the loop, the gradient against the CPU's.

    python -m bench.checks ops|graph|gradient [--device cuda]

A line a check, written at once to checks-MACHINE.jsonl; exit status 1 if any failed. Judged by the project's yardstick: at
most twice as wrong as honest PyTorch on this device in the same precision, against float64, plus one rounding. TF32 is off
for all of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from bench.run import Run, begin, parser
from purify_engine import ops
from purify_engine.kernels import _tiles
from purify_engine.ops.registry import INTERPRETED, OPS, Op
from purify_engine.testing import extended
from purify_engine.testing.agreement import Judge, as_tuple, strides
from purify_engine.testing.cases import Case, cases
from purify_engine.testing.magnitudes import magnitudes
from purify_engine.testing.yardstick import assert_as_good_as_direct, assert_within_yardstick

LOW_PRECISION = (torch.bfloat16, torch.float16)
ANY_FLOAT = ("group_norm_silu", "group_norm_silu_backward", "attention", "attention_backward", "conv3x3")
DOUBLE = 1e-12  # relative, for float64 results of which no more exact truth is written down
OPCHECKS = ("test_schema", "test_autograd_registration", "test_faketensor")


def main(words: list[str] | None = None) -> int:
    from bench.check_engine import check_gradient, check_graph

    parts = {"ops": check_ops, "graph": check_graph, "gradient": check_gradient}
    options = parser(__doc__)
    options.add_argument("part", choices=parts)
    run, chosen = begin("checks", options, words)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    parts[chosen.part](run)
    return run.close()


def check_ops(run: Run) -> None:
    """Every op on every engine that this device has, on all cases, its outputs poisoned; and its registration."""
    for op in OPS.values():
        for engine in engines(run.device):
            if callable(op.engines[engine]):
                check_engine(run, op, engine)
            else:
                run.note(f"{op.name} {engine}", str(op.engines[engine]))
        check_registration(run, op)


def engines(device: torch.device) -> list[str]:
    """The engines of kernels that a device could run."""
    if device.type == "cuda":
        return ["triton", "cuda"]
    return ["cpp", "triton"] if INTERPRETED else ["cpp"]


def check_engine(run: Run, op: Op, engine: str) -> None:
    """One op on one engine: how many cases agree, how many it leaves to the next engine, and the first that is wrong."""
    chosen, faults, declined, done = wanted(op.name, engine, run), list[str](), 0, 0
    for case in chosen:
        if run.seconds_left < 0:
            break
        done += 1
        try:
            fault = disagreement(op, case, engine, run.device)
        except DeclinedError:
            declined += 1
            continue
        if fault:
            faults.append(f"{case}: {fault}")
    says = [f"{done - declined - len(faults)} of {len(chosen)} cases agree, {declined} are left to another engine"]
    if faults:
        says.append(f"{len(faults)} wrong, first {faults[0]}")
    if done < len(chosen):
        says.append(f"no time for {len(chosen) - done}")
    ok = len(says) == 1 and declined < done
    facts = {"op": op.name, "engine": engine, "cases": len(chosen), "declined": declined, "wrong": faults[:20]}
    run.check(f"{op.name} {engine}", ok, "; ".join(says), **facts)


def wanted(op: str, engine: str, run: Run) -> list[Case]:
    """All cases; in low precision too where an op takes any float. A dry run takes a few."""
    found = cases(op)
    if op in ANY_FLOAT and engine in ("triton", "cuda"):
        single = [case for case in found if case.dtype == torch.float32]
        found = found + [dataclasses.replace(case, dtype=dtype) for case in single for dtype in LOW_PRECISION]
    if not run.toy:
        return found
    if engine != "triton":
        return [case for case in found if case.dtype == torch.float32 and 0 not in case.shape][::29]
    small = sorted((case for case in found if 0 not in case.shape), key=lambda case: torch.Size(case.shape).numel())
    return [case for dtype in (torch.float32, torch.float16) for case in [one for one in small if one.dtype == dtype][2:4]]


class DeclinedError(Exception):
    """The engine leaves this call to the next one."""


def declines(fault: Exception) -> bool:
    """Whether the registry says that a forced engine has nothing for a call, or for a part of it."""
    return isinstance(fault, RuntimeError) and bool(re.search("has no .* (kernel for these arguments|engine for)", str(fault)))


def disagreement(op: Op, case: Case, engine: str, device: torch.device) -> str:
    """What is wrong with the engine's results on a case; nothing if all is right."""
    arguments = tuple(moved(value, device) for value in case.arguments())
    judge = assert_as_good_as_direct if engine == "cpp" and "conv3x3" in op.name else assert_within_yardstick
    honest = as_tuple(op.engines["reference"](*arguments, **case.keywords))  # type: ignore[operator]
    try:
        with ops.backend(engine), tiles_listed(EveryShape()), poisoned(), torch.no_grad():
            got = as_tuple(op(*arguments, **case.keywords))
        sizes = magnitudes(op.name, case.arguments(), case.keywords) or (None,) * len(got)
        for index, (result, like, size) in enumerate(zip(got, honest, sizes, strict=True)):
            _compare(result, like, lambda place=index: _truth(op, case, device)[place], size, case, judge)  # type: ignore[misc]
    except Exception as fault:  # whatever a kernel does wrong is one line here, and the other cases still run
        if declines(fault):
            raise DeclinedError from fault
        return _first_line(fault)
    return ""


def _compare(got: Tensor, honest: Tensor, truth: Callable[[], Any], size: Any, case: Case, judge: Judge) -> None:
    assert (got.dtype, got.shape) == (honest.dtype, honest.shape), f"{got.dtype} {list(got.shape)}"
    assert strides(got) == strides(honest), f"strides {strides(got)}, expected {strides(honest)}"
    if not got.is_floating_point():
        assert got.equal(honest), f"{int((got != honest).sum())} of {got.numel()} elements differ"
    elif case.dtype == torch.float64 and not hasattr(extended, case.op):
        assert not got.isnan().any(), "NaN"
        assert (got - honest).norm() <= DOUBLE * honest.norm(), "differs from float64 on this device"
    else:
        judge(got, honest, truth(), size)


def _truth(op: Op, case: Case, device: torch.device) -> tuple[Any, ...]:
    """The results with digits to spare: long double for float64, float64 for the rest."""
    if case.dtype == torch.float64:
        return as_tuple(getattr(extended, case.op)(*case.arguments(), **case.keywords))
    keywords = {**case.keywords, "dtype": torch.float64} if "dtype" in case.keywords else case.keywords
    # The values that the kernel was given, and no others: rounded to the case's precision, then widened.
    arguments = tuple(_widened(moved(value, device)) for value in case.arguments())
    if op.name == "to_images":
        arguments = (arguments[0], torch.float64)
    return as_tuple(op.engines["reference"](*arguments, **keywords))  # type: ignore[operator]


def check_registration(run: Run, op: Op) -> None:
    """torch.library.opcheck, on the torch and the device that are here."""
    case = next(case for case in cases(op.name) if 0 not in case.shape and case.dtype == torch.float32)
    arguments = tuple(moved(value, run.device) for value in case.arguments())
    try:
        function = getattr(torch.ops.purify, op.name).default
        torch.library.opcheck(function, arguments, case.keywords, test_utils=OPCHECKS)
        run.check(f"{op.name} registration", True, f"opcheck on torch {torch.__version__}", op=op.name)
    except Exception as fault:
        run.check(f"{op.name} registration", False, _first_line(fault), op=op.name)


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """Fresh memory is NaN, or the largest integer: an element that a kernel leaves unwritten shows."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic
    filling = memory.fill_uninitialized_memory
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.use_deterministic_algorithms(True, warn_only=True)
        memory.fill_uninitialized_memory = True
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])
            memory.fill_uninitialized_memory = filling


@contextlib.contextmanager
def tiles_listed(wins: dict[Any, _tiles.ConvTile]) -> Iterator[None]:
    """`wins` in place of the measured table of the shapes that our convolution is chosen for."""
    before, _tiles.CONV3X3_WINS = _tiles.CONV3X3_WINS, wins
    try:
        yield
    finally:
        _tiles.CONV3X3_WINS = before


class EveryShape(dict[Any, _tiles.ConvTile]):
    """Our convolution wins everywhere, by the tile that `_tiles` guesses: to check and to time it where it is not chosen."""

    def __contains__(self, problem: object) -> bool:
        return True


def moved(value: Any, device: torch.device) -> Any:
    """A tensor on `device` with its strides, gaps and repetitions as they are, which `Tensor.to` would tidy up."""
    if not isinstance(value, Tensor) or value.device == device:
        return value
    storage = torch.empty(0, dtype=value.dtype).set_(value.untyped_storage()).to(device)
    return storage.as_strided(value.shape, value.stride(), value.storage_offset())


def _widened(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def _first_line(fault: BaseException) -> str:
    return f"{type(fault).__name__}: {next(iter(str(fault).splitlines()), '')}"[:300]


if __name__ == "__main__":
    sys.exit(main())
