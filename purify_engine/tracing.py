"""What PyTorch may do with a call other than run it: trace it, transform it, run it again in a backward pass.

Each is right, or refused in one line that says what to use; tests/test_ways_to_differentiate.py is the table.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn, cast

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from purify_engine import ops
from purify_engine.config import require
from purify_engine.engine.gradients import refuse_other_weights
from purify_engine.engine.recomputed import recomputed
from purify_engine.engine.weights import check_weights
from purify_engine.models.derived import Networks
from purify_engine.types import Images, NoiseKey

# By the names of their classes, which would take long to import where nothing is traced.
TRACING_MODES = {
    "ProxyTorchDispatchMode": "make_fx or torch.export",
    "FakeTensorMode": "FakeTensorMode, torch.export or torch.compile; for shapes alone use meta tensors",
    "FunctionalTensorMode": "torch.export or torch.compile",
}
UNTRACEABLE = (
    "a purifier cannot be traced, scripted or exported, since its steps and its noise would be those of one call: call it as it "
    "is, and export the network behind it (torch.compile leaves it as it is by itself)"
)
NO_TANGENTS = (
    "a purifier has no forward-mode derivative: use torch.autograd.functional.jvp, hvp or hessian, or torch.func.jacrev, which "
    "differentiate backwards, got {}"
)
NO_VMAP = (
    "images must be a whole batch [B, C, H, W] in one call, not one of torch.func.vmap's: flatten what is mapped into the batch; "
    "the gradient of each image is that of the sum of all losses, since images do not see one another"
)
NO_PARAMETERS = (
    "the parameters of a purifier must be no tensors that torch.func transforms, since its derivatives are in the images alone: "
    "give torch.func.functional_call plain ones"
)
NO_REDRAW = (
    "fresh noise was to be drawn in a backward pass, as torch.utils.checkpoint does when it runs a call again: the gradient "
    "would be of other noise than the result; name the noise by ids=, draw= or noise='fixed', or take it from noise='torch'"
)


class NotTraced(nn.Module):
    """A module that the tracers of torch.jit refuse in one line."""

    def __prepare_scriptable__(self) -> NoReturn:
        raise _untraceable("torch.jit.script")

    def _slow_forward(self, *args: Any, **kwargs: Any) -> NoReturn:
        """What PyTorch calls in place of `forward` while it traces."""
        raise _untraceable("torch.jit.trace or torch.onnx.export")


def refuse_untraceable(images: object, module: nn.Module) -> None:
    """Raise where a call of `module` on `images` is traced, or transformed in a way that would come out wrong.

    RuntimeError, in one line: under torch.jit.trace, torch.fx, torch.export, torch.onnx.export, make_fx, FakeTensorMode; where
    torch.func.vmap maps over the images; in forward mode, where the images or a parameter carry a tangent.
    """
    if (tracer := _tracer(images)) is not None:
        raise _untraceable(tracer)
    if ops.is_transformed():
        transforms = [interpreter.key().name for interpreter in torch._C._functorch.get_interpreter_stack()]
        if "Jvp" in transforms:
            raise RuntimeError(NO_TANGENTS.format("a call under torch.func.jvp, jacfwd or hessian"))
        if "Functionalize" in transforms:
            raise _untraceable("torch.func.functionalize")
        if isinstance(images, Tensor) and _is_batched(images):
            raise RuntimeError(NO_VMAP)
        transformed = [name for name, x in module.named_parameters() if torch._C._functorch.is_functorch_wrapped_tensor(x)]
        if transformed:
            raise RuntimeError(f"{NO_PARAMETERS}, got {transformed[0]}")
    elif getattr(forward_ad, "_current_level", 0) >= 0:  # else no tensor is asked for its tangent
        given = {"images": images, **dict(module.named_parameters())}
        dual = [name for name, x in given.items() if isinstance(x, Tensor) and forward_ad.unpack_dual(x).tangent is not None]
        if dual:
            raise RuntimeError(NO_TANGENTS.format(f"a tangent of {dual[0]}"))


def refuse_recomputed_draw() -> None:
    """Raise RuntimeError, in one line, where a fresh draw is asked for while a backward pass runs in this thread."""
    running = getattr(torch._C, "_current_graph_task_id", None)
    if running is not None and running() != -1:
        raise RuntimeError(NO_REDRAW)


def called(
    purify: Callable[[Images, NoiseKey], Images],
    noise_of: Callable[[Images], NoiseKey],
    images: Images,
    module: nn.Module,
    on_step_end: object = None,
) -> Images:
    """`purify(images, noise_of(images))`, a call of `module`, or the line of `refuse_untraceable`.

    Under torch.func's transforms it is run on the plain tensors beneath them, all of one draw. A derivative runs it again, and
    the module's weights must be the same then; a callback is refused, which would be told of all of it. What is kept between
    calls, as plans and packed weights are, so never holds a transform's tensors.
    """
    refuse_untraceable(images, module)
    networks = cast(nn.Module, module.denoiser), cast("nn.Module | None", module.guide)
    check_weights(*networks)
    if not ops.is_transformed():
        return purify(images, noise_of(images))
    require(on_step_end is None, "callback_on_step_end", "None under torch.func, which runs calls again", on_step_end)
    drawn: list[NoiseKey] = []
    before = Networks(*networks)

    def function(x: Images) -> Images:
        refuse_other_weights(before, *networks)
        if not drawn:
            drawn.append(noise_of(x))
        return purify(x, drawn[0])

    return recomputed(function, images)


def _tracer(images: object) -> str | None:
    """What traces a call on `images`, in words; None if nothing does."""
    if isinstance(images, torch.fx.Proxy):
        return "torch.fx.symbolic_trace"
    if torch.jit.is_tracing():
        return "torch.jit.trace or torch.onnx.export"
    modes = [type(mode).__name__ for mode in _get_current_dispatch_mode_stack()]
    modes.append({"FakeTensor": "FakeTensorMode", "FunctionalTensor": "FunctionalTensorMode"}.get(type(images).__name__, ""))
    return next((TRACING_MODES[mode] for mode in modes if mode in TRACING_MODES), None)


def _untraceable(tracer: str) -> RuntimeError:
    return RuntimeError(f"{UNTRACEABLE}, got {tracer}")


def _is_batched(images: Tensor) -> bool:
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(images):
        if functorch.is_batchedtensor(images):
            return True
        images = functorch.get_unwrapped(images)
    return False
