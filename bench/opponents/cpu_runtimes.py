"""Other ways to run one network on a CPU: eager PyTorch, torch.compile with freezing, ONNX Runtime, OpenVINO.

Each takes a module in plain torch.nn and its inputs and gives a call that computes on them, in float32 and on as many threads
as PyTorch was told to use. All but eager pack the weights beforehand. One that is not installed here raises `AbsentError`:

    pip install -c constraints.txt onnx onnxscript onnxruntime openvino     (the extra `peers`)

ONNX Runtime keeps its default of threads that spin while they wait for work within a call, which is faster for it, and is told
to stop when the call is over: on two cores they made eager PyTorch, timed next, several times slower, and no rest helped.
OpenMP's threads spin too, for milliseconds after a call: `core.clocks.rested` waits before each one.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import shutil
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bench.core.comparison import AbsentError

Call = Callable[[], Tensor]
Inputs = tuple[Tensor, ...]
Build = Callable[[nn.Module, Inputs], Call]

NO_BACKWARD = "it has no backward pass, so it cannot give a guide's gradient"


def eager(module: nn.Module, inputs: Inputs) -> Call:
    """PyTorch's defaults: NCHW."""
    return lambda: module(*inputs)


def eager_channels_last(module: nn.Module, inputs: Inputs) -> Call:
    """The better layout for oneDNN's convolutions, of the weights and of the image."""
    own = copy.deepcopy(module).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    image, *rest = inputs
    given = image.to(memory_format=torch.channels_last)
    return lambda: own(given, *rest)


def frozen(module: nn.Module, inputs: Inputs, *, toy: bool = False) -> Call:
    """torch.compile with the weights as constants, so that inductor folds and packs them. `toy` traces, and compiles nothing."""
    with contextlib.nullcontext() if toy else _freezing():
        call = traced(module, toy=toy)
        call(*inputs)
    return lambda: call(*inputs)


def _freezing() -> Any:
    """The settings of inductor under which the first call compiles; its own cache knows nothing of the number of threads."""
    import torch._inductor.config as inductor

    return inductor.patch({"freezing": True, "fx_graph_cache": False, "cpp.threads": torch.get_num_threads()})


def traced(function: Any, *, toy: bool = False) -> Any:
    """`function` by torch.compile, as one graph for these very shapes; what was compiled before is let go."""
    if shutil.which("g++") is None and not toy:
        raise AbsentError("torch.compile needs a C++ compiler")
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, dynamic=False, **({"backend": "eager"} if toy else {}))


def onnx_runtime(module: nn.Module, inputs: Inputs) -> Call:
    """ONNX Runtime on the graph that torch.onnx exports."""
    _need("onnxruntime", "onnx", "onnxscript")
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.inter_op_num_threads = torch.get_num_threads(), 1
    settings.add_session_config_entry("session.force_spinning_stop", "1")
    settings.log_severity_level = 3
    session = onnxruntime.InferenceSession(_exported(module, inputs), settings, providers=["CPUExecutionProvider"])
    given = {slot.name: value.numpy() for slot, value in zip(session.get_inputs(), inputs, strict=True)}
    return lambda: torch.from_numpy(session.run(None, given)[0])


def _exported(module: nn.Module, inputs: Inputs) -> bytes:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(module, inputs, dynamo=True, verbose=False)
    assert program is not None
    return program.model_proto.SerializeToString()


def openvino(module: nn.Module, inputs: Inputs) -> Call:
    """OpenVINO on the traced module: one stream, in float32 (it would take bfloat16 where the processor has it)."""
    _need("openvino")
    import openvino as library

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        graph = library.convert_model(module, example_input=inputs, input=[tuple(value.shape) for value in inputs])
    settings = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
    settings["INFERENCE_NUM_THREADS"] = torch.get_num_threads()
    compiled = library.Core().compile_model(graph, "CPU", settings)
    given = [value.numpy() for value in inputs]
    return lambda: torch.from_numpy(compiled(given, share_inputs=True, share_outputs=True)[0])


def _need(*names: str) -> None:
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise AbsentError(f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed here")


def prepacked(x: Tensor, weight: Tensor, bias: Tensor) -> Call:
    """One 3x3 convolution by oneDNN, its weights laid out beforehand as it likes them best for this very shape."""
    if not torch.backends.mkldnn.is_available():
        raise AbsentError("PyTorch has no oneDNN here")
    same = [1, 1]
    packed = torch.ops.mkldnn._reorder_convolution_weight(weight, same, same, same, 1, list(x.shape))
    how = (same, same, same, 1, "none", [], "")  # padding, stride, dilation, groups; nothing fused
    return lambda: torch.ops.mkldnn._convolution_pointwise(x, packed, bias, *how)


def networks(*, toy: bool) -> dict[str, Build]:
    """All that run a network forward, by name; the first is the honest measure of float32's error."""
    return {
        "eager fp32": eager,
        "eager channels_last": eager_channels_last,
        "torch.compile frozen": lambda module, inputs: frozen(module, inputs, toy=toy),
        "ONNX Runtime": onnx_runtime,
        "OpenVINO": openvino,
    }
