"""The reverse loop as a graph: one guided step captured for each batch bucket and replayed over the plan.

On a GPU it is a CUDA graph, on a CPU a recording (cpu_capture.py). Everything that changes between calls lives in tensors that a
graph reads: the images, the plan's tables, seed, ids, the guide's target and the step counter. So another plan, seed or batch of
the same bucket needs no capture. Equal to `reverse_loop` bit for bit at the same padded batch.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from purify_engine import ops
from purify_engine.config import require
from purify_engine.engine.capture import WARM_UP, Branches, Capture, CaptureError, CudaCapture, bucket_of
from purify_engine.engine.cpu_capture import CpuCapture
from purify_engine.engine.guide import Guide, Target
from purify_engine.engine.loop import Denoiser
from purify_engine.engine.plan import ReversePlan
from purify_engine.engine.walk import Walk
from purify_engine.models.derived import Watched
from purify_engine.ops import cpp
from purify_engine.ops.stamp import Stamp
from purify_engine.types import Images, NoiseKey

AUTOCAST = "autocast is on, and a graph would keep its casts; convert the purifier itself with .to(torch.bfloat16)"
GRAPHS_ON = ("cuda", "cpu")


class GraphRunner:
    """`run` is `reverse_loop` and `adjoint` one step of its gradient, replayed from captured graphs.

    capture: how to record; by default as suits the device. whole_plan: all steps of a plan as one graph instead of one step.
    Graphs are dropped when a weight of the networks changes. Calls take their turn: they share the graphs' tensors.
    """

    def __init__(self, model: Denoiser, guide: Guide, capture: Capture | None = None, *, whole_plan: bool = False) -> None:
        self.model, self.guide, self.whole_plan = model, guide, whole_plan
        self._given = capture
        self._captures: dict[torch.device, Capture] = {}
        self._graphs: dict[Any, _StepGraph | _AdjointGraph] = {}
        self._watched = Watched(*(part for part in (model, guide) if isinstance(part, nn.Module)))
        self._captured_of = Stamp()
        self._turn = threading.RLock()

    def run(self, x: Images, plan: ReversePlan, noise: NoiseKey) -> Images:
        """`reverse_loop(x, plan, model, guide, noise)` without recording a gradient; x [B, C, H, W] in [-1, 1]."""
        with self._turn, torch.no_grad():
            batch, x, noise = len(x), self._padded(x), NoiseKey(noise.key, self._padded(noise.ids))
            target = self.guide.target(x)
            x_t, _ = ops.q_sample(x, plan.start, plan.forward_step, *noise)
            return self._walked(x_t, target, plan, noise, None)[:batch].clone()

    def walk(
        self, x_t: Images, target: Target, plan: ReversePlan, noise: NoiseKey, guide_path: bool
    ) -> tuple[Images, list[Images]]:
        """From x_t at t* to x_0, and the images visited on the way; all [B, C, H, W]. `adjoint` is to follow."""
        with self._turn, torch.no_grad():
            batch, visited = len(x_t), list[Images]()
            x_t, noise = self._padded(x_t), NoiseKey(noise.key, self._padded(noise.ids))
            target = tuple(self._padded(part) for part in target)
            self._graph(_AdjointGraph, x_t, target, plan, noise, guide_path)  # a CUDA capture that fails does so here already
            x = self._walked(x_t, target, plan, noise, visited)
            return x[:batch].clone(), [seen[:batch] for seen in visited]

    def _walked(
        self, x_t: Images, target: Target, plan: ReversePlan, noise: NoiseKey, visited: list[Images] | None
    ) -> Images:
        whole = self.whole_plan and visited is None
        graph = self._graph(_StepGraph, x_t, target, plan, noise, len(plan) if whole else None)
        graph.load(plan, x_t, target, noise)
        for _ in range(1 if whole else len(plan)):
            if visited is not None:
                visited.append(graph.x_t.clone())
            graph.replay()
        if (reason := self._capture(x_t.device).refused) is not None:
            raise CaptureError(reason)
        return graph.x_t

    def adjoint(
        self, adjoint: Images, visited: list[Images], target: Target, plan: ReversePlan, noise: NoiseKey, guide_path: bool
    ) -> tuple[Images, Target]:
        """E15 over the whole walk: the adjoint at x_t*, and the gradient to the target."""
        with self._turn, torch.no_grad():
            batch, noise = len(adjoint), NoiseKey(noise.key, self._padded(noise.ids))
            target = tuple(self._padded(part) for part in target)
            graph = self._graph(_AdjointGraph, self._padded(visited[0]), target, plan, noise, guide_path)
            graph.load(plan, self._padded(visited[0]), target, noise)
            graph.begin(torch.cat([adjoint, adjoint.new_zeros(len(graph.x_t) - batch, *adjoint.shape[1:])]))
            for step, x_t in zip(reversed(plan.steps), reversed(visited), strict=True):
                graph.step.copy_(step)
                graph.x_t.copy_(self._padded(x_t))
                graph.replay()
            return graph.adjoint[:batch].clone(), tuple(total[:batch].clone() for total in graph.totals)

    def _padded(self, tensor: Tensor) -> Tensor:
        """The batch filled up to its bucket by its first entry."""
        missing = self._capture(tensor.device).bucket(len(tensor)) - len(tensor)
        return torch.cat([tensor, tensor[:1].expand(missing, *tensor.shape[1:])]) if missing else tensor

    def _graph(self, kind: type, x_t: Images, target: Target, plan: ReversePlan, noise: NoiseKey, detail: Any) -> Any:
        if torch.is_autocast_enabled(x_t.device.type):
            raise CaptureError(AUTOCAST)
        self._drop_stale()
        vectors = cpp.room.instruction_set() if cpp.room else None
        engine = ops.forced(), torch.get_num_threads(), vectors  # who computes is captured with what
        key = kind, x_t.shape, x_t.dtype, x_t.device, plan.net_dtype, detail, engine
        graph, capture = self._graphs.pop(key, None), self._capture(x_t.device)
        if graph is None or graph.capacity < len(plan):
            graph = kind(Walk(_with_capacity(plan), self.model, self.guide, noise), x_t, target, detail, capture)
        self._graphs[key] = graph  # last, as the last one used
        while capture.most_graphs is not None and len(self._graphs) > capture.most_graphs:
            del self._graphs[next(iter(self._graphs))]
        return graph

    def _capture(self, device: torch.device) -> Capture:
        if self._given is not None:
            return self._given
        require(device.type in GRAPHS_ON, "execution", f"'loop' or 'auto' on {device.type}, where nothing is recorded", "graph")
        if device not in self._captures:
            self._captures[device] = CudaCapture(device) if device.type == "cuda" else CpuCapture()
        return self._captures[device]

    def _drop_stale(self) -> None:
        tensors = self._watched.tensors()
        if not self._captured_of.still_of(tensors):
            self._graphs.clear()
            self._captured_of = Stamp(tensors)


class _Graph:
    """The tensors that a graph reads, of one shape; `load` fills them."""

    def __init__(self, walk: Walk, x_t: Images, target: Target) -> None:
        self.capacity = len(walk.plan)
        self.x_t, self.step = x_t.clone(), torch.zeros((), dtype=torch.int64, device=x_t.device)
        self.target = tuple(part.clone() for part in target)
        self.walk = walk._replace(noise=NoiseKey(walk.noise.key.clone(), walk.noise.ids.clone()))
        self._prepare = getattr(walk.model, "prepare", lambda plan: None)
        self._prepare(walk.plan)
        self._plan: ReversePlan | None = None  # whose tables these are

    def load(self, plan: ReversePlan, x_t: Images, target: Target, noise: NoiseKey) -> None:
        """Point the graph at a plan, images, what guides them, and their noise."""
        if plan is not self._plan:
            for name in ("rows", "times", "marginals"):
                getattr(self.walk.plan, name)[: len(plan)].copy_(getattr(plan, name))
            self._prepare(self.walk.plan)
            self._plan = plan
        for own, given in zip((*self.target, *self.walk.noise), (*target, *noise), strict=True):
            own.copy_(given)
        self.x_t.copy_(x_t)
        self.step.zero_()


class _StepGraph(_Graph):
    """One guided step at the step counter, which it moves on, or all of a plan's `steps`: x_t is moved on."""

    def __init__(self, walk: Walk, x_t: Images, target: Target, steps: int | None, capture: Capture) -> None:
        super().__init__(walk, x_t, target)
        self.steps = (self.step,) if steps is None else self.walk.plan.steps[:steps]
        self.branches = Branches(x_t.device)
        dtype = walk.plan.net_dtype
        self.x_net = self.x_t if dtype is None else x_t.to(dtype, memory_format=torch.channels_last, copy=True)
        self.replay: Callable[[], None] = capture(self._advance)

    def load(self, plan: ReversePlan, x_t: Images, target: Target, noise: NoiseKey) -> None:
        super().load(plan, x_t, target, noise)
        if self.x_net is not self.x_t:
            self.x_net.copy_(x_t)

    def _advance(self) -> None:
        x_t, x_net = self.x_t, self.x_net
        plan, _, _, noise, _ = self.walk
        for step in self.steps:
            eps, grad = self._predict(x_net, step)
            x_t, x_net = ops.guided_step(x_t, eps, grad, plan.rows, step, *noise, net_dtype=plan.net_dtype)
        self.x_t.copy_(x_t)
        if self.x_net is not self.x_t:
            self.x_net.copy_(x_net)
        self.step.add_(1)

    def _predict(self, x_net: Images, step: Tensor) -> tuple[Images, Images | None]:
        plan, model, guide, noise, _ = self.walk
        if guide.reads_eps:
            eps = model(x_net, plan, step)
            return eps, guide.grad(x_net, eps, self.target, plan, step, noise)
        return self.branches(
            lambda: model(x_net, plan, step), lambda: guide.grad(x_net, None, self.target, plan, step, noise)
        )


class _AdjointGraph(_Graph):
    """One step of E15, recomputed and differentiated: the adjoint is carried back, the gradient to the target added up."""

    def __init__(self, walk: Walk, x_t: Images, target: Target, guide_path: bool, capture: Capture) -> None:
        super().__init__(walk._replace(guide_path=guide_path), x_t, target)
        self.adjoint = torch.zeros_like(self.x_t)
        self.totals = tuple(torch.zeros_like(part) for part in self.target)
        self.replay: Callable[[], None] = capture(self._go_back)

    def begin(self, adjoint: Images) -> None:
        """Start from the gradient at x_0."""
        self.adjoint.copy_(adjoint)
        for total in self.totals:
            total.zero_()

    def _go_back(self) -> None:
        adjoint, pulls = self.walk.step_adjoint(self.adjoint, self.x_t, self.target, self.step)
        self.adjoint.copy_(adjoint)
        for total, pull in zip(self.totals, pulls, strict=True):
            total.add_(pull)


class PurifierGraphs:
    """A purifier's runner, made when it is first needed and anew for another guide. Copies and pickles of it start empty."""

    def __init__(self) -> None:
        self.refused: str | None = None  # why nothing can be captured here, once that was seen
        self._runner: tuple[Any, GraphRunner] | None = None

    def __reduce__(self) -> tuple[type[PurifierGraphs], tuple[()]]:
        return PurifierGraphs, ()

    def runner(self, model: Denoiser, guide: Callable[[], Guide], made_of: tuple[Any, ...]) -> GraphRunner:
        """The runner of `model` and of the guide that `guide()` makes from `made_of`."""
        if self._runner is None or self._runner[0] != (model, *made_of):
            self._runner = (model, *made_of), GraphRunner(model, guide())
        return self._runner[1]


def _with_capacity(plan: ReversePlan) -> ReversePlan:
    """A plan of tables of its own, with room for longer ones and for the warm-up: its last step repeated."""
    count = bucket_of(max(len(plan), WARM_UP + 1))

    def longer(table: Tensor) -> Tensor:
        return torch.cat([table, table[-1:].expand(count - len(table), *table.shape[1:])]).clone()

    return dataclasses.replace(plan, rows=longer(plan.rows), times=longer(plan.times), marginals=longer(plan.marginals))
