"""The gradient of a whole purification: exact at the memory of one step, and the ways attackers approximate it.

Exact (docs/math.md E15) keeps the visited images, recomputes one step at a time, and carries the adjoint back through the
networks, the guidance's own second derivatives, and the guide's target. Nothing is closed over: the input and the target are
explicit inputs, and a network parameter that wants a gradient is refused, since it would silently get none.

A derivative of the gradient, as of a Hessian-vector product, records the networks of all steps, at the memory of them all.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from purify_engine.config import GradientMode
from purify_engine.devices import named_parameters_of
from purify_engine.engine.guide import Target
from purify_engine.engine.loop import Loop
from purify_engine.engine.plan import ReversePlan
from purify_engine.engine.process import Executor, OnStepEnd, ReverseProcess
from purify_engine.engine.recomputed import pulled_back, recomputed
from purify_engine.engine.uncompiled import uncompiled
from purify_engine.models.derived import Networks
from purify_engine.ops import autocast
from purify_engine.types import Images, NoiseKey, Step


def purify(
    executor: Executor,
    process: ReverseProcess,
    x: Images,
    *,
    mode: GradientMode,
    surrogate: ReversePlan,
    on_step_end: OnStepEnd | None = None,
) -> Images:
    """`executor.run(process, x)`, with the gradient that `mode` names.

    `on_step_end(step, t, x_t)`, for which the executor is to be the loop, sees every image on the way; x_t has its own gradient,
    by which a loss on it can be differentiated, where `mode` is of the purification itself, and none in bpda and surrogate.

    exact: of the whole purification itself. straight_through: the same, with a guide whose hard pseudo-label has the soft one's
    gradient. detached_guidance: the guide's pull taken for a constant, for diagnosis. surrogate: of the shorter `surrogate` plan.
    bpda: the identity's (Athalye et al. 2018). blind: the value, too, is `x`: the attacker does not know of the purifier.
    """
    if mode == "blind":
        return x
    refuse_parameter_gradients(process.model, process.guide)
    if mode in ("bpda", "surrogate"):
        with torch.no_grad():
            value = executor.run(process, x, on_step_end)
        path = x if mode == "bpda" else differentiable_run(executor, process._replace(plan=surrogate), x)
        return _with_gradient_of(path, value)
    return differentiable_run(executor, process._replace(follow_guide=mode != "detached_guidance"), x, on_step_end)


def differentiable_run(
    executor: Executor, process: ReverseProcess, x: Images, on_step_end: OnStepEnd | None = None
) -> Images:
    """`executor.run(process, x)` with its exact gradient in `x`, at the network memory of one step.

    A process that does not follow its guide leaves out what reaches the output through the guide, its target included.
    `on_step_end` is given images of which each has its gradient, too.
    """
    target = process.guide.target(x)
    if not process.follow_guide:
        target = tuple(part.detach() for part in target)
    x_t, _ = process.start(x)
    if on_step_end is None:
        return _ReverseWalk.apply(x_t, executor, process, *target)
    way, times = _Way.here(Loop(), process.derived(), x_t), process.plan.times.tolist()
    for index, step in enumerate(process.plan.steps):
        x_t = recomputed(partial(way.step, step), x_t, *target)
        on_step_end(index, times[index], x_t)
    return x_t


def refuse_parameter_gradients(*parts: object) -> None:
    """A purifier's gradient is with respect to its input alone; a parameter that expects one is told so."""
    networks = [part for part in parts if isinstance(part, nn.Module)]
    waiting = [name for network in networks for name, p in named_parameters_of(network) if p.requires_grad]
    if waiting:
        raise ValueError(
            "network parameters must be frozen to differentiate a purifier (its gradient is in the images alone), got "
            f"{len(waiting)} that require one, first {waiting[0]!r}; call purifier.requires_grad_(False), or run under "
            "torch.no_grad()"
        )


def refuse_other_weights(networks: Networks, *parts: object) -> None:
    """A derivative runs the networks again: RuntimeError, in one line, where their weights are no longer those of the call."""
    if not networks.are(*parts):
        raise RuntimeError(
            "the weights of a purifier must stay as they are between a call and its derivatives, which run the networks again, "
            "got others; differentiate before they change, and load weights into a copy in place of torch.func.functional_call"
        )


def _with_gradient_of(path: Tensor, value: Tensor) -> Tensor:
    return path + (value - path).detach()


class _Way(NamedTuple):
    """How a walk was taken: what its derivatives have to know."""

    executor: Executor
    process: ReverseProcess
    networks: Networks
    autocast: Callable[[], AbstractContextManager[object]]  # as it was there: other networks would be differentiated else

    @classmethod
    def here(cls, executor: Executor, process: ReverseProcess, x: Images) -> _Way:
        captured_of: Networks | None = getattr(executor, "captured_of", None)  # a replay has asked already
        return cls(executor, process, captured_of or Networks(process.model, process.guide), autocast.as_here(x.device.type))

    def step(self, step: Step, x_t: Images, *target: Tensor) -> Images:
        """The next image."""
        refuse_other_weights(self.networks, self.process.model, self.process.guide)
        with self.autocast():
            return self.process.step(x_t, self.process.for_networks(x_t), target, step)[0]

    def forth(self, x_t: Images, *target: Tensor) -> Images:
        """x_0, step by step, as autograd may record it."""
        with self.autocast():
            return Loop().walk(self.process, x_t, target)[0]

    def back(self, num_targets: int, adjoint: Images, x_t: Images, *kept: Tensor) -> tuple[Tensor, ...]:
        """The gradient at x_0 carried back, to x_t and to the target; `kept` are the target and the images visited after x_t.

        Where autograd records, it is computed from the recorded networks of all steps, and can be differentiated.
        """
        refuse_other_weights(self.networks, self.process.model, self.process.guide)
        target, visited = kept[:num_targets], kept[num_targets:]
        if torch.is_grad_enabled():
            return pulled_back(self.forth, (True,) * (1 + num_targets), adjoint, x_t, *target)
        rows = _reached(adjoint)
        with self.autocast():
            if rows is not None:
                return self._back_of(rows, adjoint, [x_t, *visited], target)
            adjoint, totals = self.executor.adjoint(self.process, adjoint, [x_t, *visited], target)
        return adjoint, *totals

    def _back_of(self, rows: Tensor, adjoint: Images, visited: list[Images], target: Target) -> tuple[Tensor, ...]:
        """`back` of these images alone; the others' is zero. By the loop, as recordings are of one batch size."""
        wholes = adjoint, *target
        if len(rows) == 0:
            return tuple(map(torch.zeros_like, wholes))
        noise = NoiseKey(*(part[rows] if part.dim() else part for part in self.process.noise))
        process, some = self.process._replace(noise=noise), tuple(part[rows] for part in target)
        found, totals = Loop().adjoint(process, adjoint[rows], [x_t[rows] for x_t in visited], some)
        pairs = zip(wholes, (found, *totals), strict=True)
        return tuple(torch.zeros_like(whole).index_copy(0, rows, own) for whole, own in pairs)


def _reached(adjoint: Images) -> Tensor | None:
    """The places of those images of `adjoint` that are not zero throughout, where leaving out the others saves a quarter or more.

    None: all take part. An attack whose loss is capped has no slope at the draws that it has fooled; on a CPU each image costs
    its time, while a GPU would be waited for, and its graphs are of certain batches.
    """
    if adjoint.device.type != "cpu" or type(adjoint) is not Tensor:
        return None
    rows = (adjoint != 0).flatten(1).any(dim=1).nonzero().flatten()
    return rows if 4 * len(rows) <= 3 * len(adjoint) else None


class _ReverseWalk(torch.autograd.Function):
    """x_t at t* and the guide's target, to x_0. Keeps the N visited images; recomputes the networks step by step."""

    @staticmethod
    def forward(ctx: Any, x_t: Images, executor: Executor, process: ReverseProcess, *target: Tensor) -> Images:
        x, visited = executor.walk(process, x_t, target)
        ctx.save_for_backward(x_t, *target, *visited[1:])
        ctx.back = partial(_Way.here(executor, process, x).back, len(target))
        return x

    @staticmethod
    @uncompiled("the exact gradient recomputes the networks step by step")
    def backward(ctx: Any, adjoint: Images) -> tuple[Tensor | None, ...]:
        to_x_t, *to_target = recomputed(ctx.back, adjoint, *ctx.saved_tensors)
        return to_x_t, None, None, *to_target
