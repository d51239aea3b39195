"""One 3x3 convolution in fp8 by cuDNN, through its Python frontend; and matrix products in fp8, which say what it could give.

The frontend is the package nvidia-cudnn-frontend; where it is not installed, or cuDNN has no such convolution, `AbsentError`
says so.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.core.comparison import AbsentError, first_line
from purify_engine.benchmark.harness import Clock

MOST_PLANS = 5  # of cuDNN's own order, each timed once warm
FP8 = torch.float8_e4m3fn


def quantised(x: Tensor) -> tuple[Tensor, Tensor]:
    """`x` in E4M3 with one scale, in its layout: x is about scale times it."""
    scale = x.abs().amax().float() / torch.finfo(FP8).max
    return (x.float() / scale).to(FP8), scale


def convolution(x: Tensor, weight: Tensor, scale: Tensor, clock: Clock, compute: str) -> Callable[[], Tensor]:
    """scale conv(x, weight), padding 1: both in E4M3 and channels_last, the result in bfloat16.

    compute: "FLOAT", or "FAST_FLOAT_FOR_FP8", whose sums keep fewer bits. The fastest of cuDNN's first plans by `clock`.
    """
    if importlib.util.find_spec("cudnn") is None:
        raise AbsentError("nvidia-cudnn-frontend is not installed here; `make gpu-carry` fetches it")
    import cudnn

    handle, types = cudnn.create_handle(), cudnn.data_type
    cudnn.set_stream(handle=handle, stream=torch.cuda.current_stream().cuda_stream)
    graph = cudnn.pygraph(
        io_data_type=types.FP8_E4M3, intermediate_data_type=types.FLOAT, compute_data_type=types.FLOAT, handle=handle
    )
    image, filters = (
        graph.tensor(name=name, dim=list(given.shape), stride=list(given.stride()), data_type=types.FP8_E4M3)
        for name, given in (("image", x), ("filters", weight))
    )
    same = [1, 1]
    how = {"padding": same, "stride": same, "dilation": same, "compute_data_type": getattr(types, compute)}
    raw = graph.conv_fprop(image=image, weight=filters, **how)
    factor = graph.tensor(name="scale", dim=[1] * 4, stride=[1] * 4, data_type=types.FLOAT)
    result = graph.mul(a=raw, b=factor)
    result.set_output(True).set_data_type(types.BFLOAT16)
    try:
        graph.validate()
        graph.build_operation_graph()
        graph.create_execution_plans([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
    except Exception as refused:  # its own kinds of error, by version
        raise AbsentError(f"cuDNN {cudnn.backend_version()} refuses it: {first_line(refused)}") from refused
    shape = x.shape[0], weight.shape[0], *x.shape[2:]
    out = torch.empty(shape, dtype=torch.bfloat16, device=x.device, memory_format=torch.channels_last)
    given = {image: x, filters: weight, factor: scale.view(1, 1, 1, 1), result: out}
    return _fastest(graph, given, out, handle, clock)


def _fastest(graph: Any, given: dict[Any, Tensor], out: Tensor, handle: Any, clock: Clock) -> Callable[[], Tensor]:
    """The call of the plan that took least; plans that cuDNN cannot build or run are passed over."""
    timed: list[tuple[float, int, Tensor]] = []
    refused = "it has no plan"
    for index in range(min(graph.get_execution_plan_count(), MOST_PLANS)):
        try:
            graph.build_plan_at_index(index)
            size = max(graph.get_workspace_size_plan_at_index(index), 1)
            workspace = torch.empty(size, dtype=torch.uint8, device=out.device)
            call = _call(graph, given, out, workspace, index, handle)
            clock(call)
            timed.append((min(clock(call) for _ in range(3)), index, workspace))
        except Exception as fault:
            refused = first_line(fault)
    if not timed:
        raise AbsentError(f"cuDNN built none of its plans: {refused}")
    _, index, workspace = min(timed, key=lambda entry: entry[0])
    return _call(graph, given, out, workspace, index, handle)


def _call(
    graph: Any, given: dict[Any, Tensor], out: Tensor, workspace: Tensor, index: int, handle: Any
) -> Callable[[], Tensor]:
    def run() -> Tensor:
        graph.execute_plan_at_index(given, workspace, index, handle=handle)
        return out

    return run


def matrix_product(left: Tensor, right: Tensor) -> Callable[[], Tensor]:
    """left [M, K] times right [N, K] transposed, both in E4M3, with a scale a row and a column, in bfloat16."""
    scales = torch.ones(len(left), 1, device=left.device), torch.ones(1, len(right), device=left.device)
    try:
        torch._scaled_mm(left[:16], right.t(), scales[0][:16], scales[1], out_dtype=torch.bfloat16)
    except (RuntimeError, NotImplementedError) as refused:
        raise AbsentError(f"PyTorch refuses it: {first_line(refused)}") from refused
    return lambda: torch._scaled_mm(left, right.t(), *scales, out_dtype=torch.bfloat16, use_fast_accum=left.is_cuda)
