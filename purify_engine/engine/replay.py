"""The reverse process as captured graphs: one guided step, recorded once for each batch bucket and replayed over the plan.

On a GPU a graph is a CUDA graph, on a CPU a recording (cpu_capture.py). Everything that changes between calls lives in tensors
that a graph reads: the images, the plan's tables, seed, ids, the guide's target and the step counter. So another plan, seed or
batch of the same bucket needs no capture. On a GPU what comes before the first step is a graph, too. Equal to the loop bit for
bit at the same padded batch.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from purify_engine import ops
from purify_engine.config import require
from purify_engine.engine.capture import WARM_UP, Branches, Capture, CaptureError, CudaCapture, bucket_of, superfluous
from purify_engine.engine.cpu_capture import CpuCapture
from purify_engine.engine.guide import Target
from purify_engine.engine.plan import ReversePlan
from purify_engine.engine.process import OnStepEnd, ReverseProcess
from purify_engine.models.derived import Networks
from purify_engine.ops import autocast, switches
from purify_engine.types import GuideNoise, Images, NoiseKey

AUTOCAST = "autocast is on, and a graph would keep its casts; convert the purifier itself with .to(torch.bfloat16)"
GRAPHS_ON = ("cuda", "cpu")
After = Callable[[int, "_Graph"], None]  # is told of a step that was replayed, and by which graph
MOST_STEPS, MOST_PIXELS = 16, 2**14  # of a plan and a batch that the switch `whole_plan` makes one graph of


class Replay:
    """Runs a reverse process, and the steps of its gradient, by replaying captured graphs; copies and pickles start empty.

    capture: how to record; by default as suits the device. whole_plan: all steps of a plan as one graph instead of one step.
    Graphs are of one model and one guide: dropped when another comes, or when a weight of theirs changes. Calls take their turn,
    since they share the graphs' tensors. What cannot be captured raises CaptureError.
    """

    def __init__(self, capture: Capture | None = None, *, whole_plan: bool = False) -> None:
        self.refused: str | None = None  # why a caller replays no more, once a capture failed
        self.whole_plan = whole_plan
        self._given = capture
        self._captures: dict[torch.device, Capture] = {}
        self._graphs: dict[Any, _Graph] = {}
        self.captured_of = Networks()
        self._turn = threading.RLock()
        self._calls = 0  # of graphs: a callback of one may have made others

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(Replay, self._given, whole_plan=self.whole_plan), ()

    def run(self, process: ReverseProcess, x: Images, on_step_end: OnStepEnd | None = None) -> Images:
        """`Loop.run` without recording a gradient; x [B, C, H, W] in [-1, 1]. `on_step_end` is given copies."""
        with self._turn, torch.no_grad():
            batch, process, x, capture = len(x), self._padded_noise(process), self._padded(x), self._capture(x.device)
            kind = _PlanGraph if on_step_end is None and self._is_whole(process, x) else _StepGraph
            if on_step_end is None and capture.records_opening and switches.is_on("captured_opening"):
                graph: _StepGraph = self._graph(kind, process, x.contiguous(), partial(process.guide.target, x))
                graph.open(process, x, capture)
                return self._walked(graph, process)[:batch].clone()
            process, target, (x_t, _), after = process.derived(), process.guide.target(x), process.start(x), None
            graph = self._loaded(kind, process, x_t, target)
            if on_step_end is not None:
                times = process.plan.times.tolist()
                after = partial(self._tell, lambda step, x: on_step_end(step, times[step], x[:batch].clone()), process, target)
            return self._walked(graph, process, after=after)[:batch].clone()

    def _is_whole(self, process: ReverseProcess, x: Images) -> bool:
        is_small = len(process.plan) <= MOST_STEPS and x.numel() <= MOST_PIXELS
        return self.whole_plan or (is_small and switches.is_on("whole_plan"))

    def tells_every_step(self, device: torch.device) -> bool:
        """Whether `run` may be given `on_step_end`: not where a failure shows after steps that it has seen already."""
        return self._capture(device).fails_at_once

    def _tell(
        self, told: Callable[[int, Images], None], process: ReverseProcess, target: Target, step: int, graph: _Graph
    ) -> None:
        x_t, calls = graph.x_t.clone(), self._calls
        told(step, x_t)
        if self._calls != calls:  # it called the purifier, which shares the graph's tensors
            graph.load(process, x_t, target)
            graph.step.fill_(step + 1)

    def walk(self, process: ReverseProcess, x_t: Images, target: Target) -> tuple[Images, list[Images]]:
        """From x_t at t* to x_0, and the images visited on the way; all [B, C, H, W]. `adjoint` is to follow."""
        with self._turn, torch.no_grad():
            batch, visited, process, x_t = len(x_t), list[Images](), self._padded_noise(process).derived(), self._padded(x_t)
            target = tuple(self._padded(part) for part in target)
            self._graph(_AdjointGraph, process, x_t, lambda: target)  # a CUDA capture that fails does so here already
            x = self._walked(self._loaded(_StepGraph, process, x_t, target), process, visited)
            return x[:batch].clone(), [seen[:batch] for seen in visited]

    def _walked(
        self, graph: _StepGraph, process: ReverseProcess, visited: list[Images] | None = None, after: After | None = None
    ) -> Images:
        for step in range(1 if isinstance(graph, _PlanGraph) else len(process.plan)):
            if visited is not None:
                visited.append(graph.x_t.clone())
            graph.replay()
            if after is not None:
                after(step, graph)
        if (reason := self._capture(graph.x_t.device).refused) is not None:
            raise CaptureError(reason)
        return graph.x_t

    def adjoint(self, process: ReverseProcess, adjoint: Images, visited: list[Images], target: Target) -> tuple[Images, Target]:
        """The gradient at x_0 carried back over a whole walk (docs/math.md E15): to x_t at t*, and to the target."""
        with self._turn, torch.no_grad():
            batch, process = len(adjoint), self._padded_noise(process).derived()
            x_t, target = self._padded(visited[0]), tuple(self._padded(part) for part in target)
            graph: _AdjointGraph = self._loaded(_AdjointGraph, process, x_t, target)
            graph.begin(torch.cat([adjoint, adjoint.new_zeros(len(x_t) - batch, *adjoint.shape[1:])]))
            for step, x_t in zip(reversed(process.plan.steps), reversed(visited), strict=True):
                graph.step.copy_(step)
                graph.x_t.copy_(self._padded(x_t))
                graph.replay()
            return graph.adjoint[:batch].clone(), tuple(total[:batch].clone() for total in graph.totals)

    def _padded(self, tensor: Tensor) -> Tensor:
        """The batch filled up to its bucket by its first entry."""
        missing = self._capture(tensor.device).bucket(len(tensor)) - len(tensor)
        return torch.cat([tensor, tensor[:1].expand(missing, *tensor.shape[1:])]) if missing else tensor

    def _padded_noise(self, process: ReverseProcess) -> ReverseProcess:
        return process._replace(noise=NoiseKey(*(self._padded(part) if part.dim() else part for part in process.noise)))

    def _loaded(self, kind: type[_Graph], process: ReverseProcess, x_t: Images, target: Target) -> Any:
        """`_graph`, its tensors filled."""
        graph = self._graph(kind, process, x_t, lambda: target)
        graph.load(process, x_t, target)
        return graph

    def _graph(self, kind: type[_Graph], process: ReverseProcess, x_t: Images, target: Callable[[], Target]) -> Any:
        """The graph of `kind` for such images and such a target, captured where there is none yet."""
        self._calls += 1
        if autocast.is_on(x_t.device.type):
            raise CaptureError(AUTOCAST)
        if not self.captured_of.are(process.model, process.guide):
            self._graphs.clear()
            for capture in self._captures.values():
                capture.refused = None  # that was said of other networks
            self.captured_of = Networks(process.model, process.guide)
        # A graph goes on calling what was called when it was captured: the engines, and what they were told.
        told = ops.forced(), ops.is_bypass_forbidden(), switches.state(), ops.instruction_set(), torch.get_num_threads()
        plan, per_image = process.plan, process.noise.key.dim()  # whether every image has a key of its own
        key = kind, x_t.shape, x_t.dtype, x_t.device, per_image, plan.net_dtype, plan.corrections, kind.detail(process), told
        graph, capture = self._graphs.pop(key, None), self._capture(x_t.device)
        if graph is None or graph.capacity < len(plan):
            graph = kind(process, x_t, target(), capture)
        self._graphs[key] = graph  # at the end: the first of them is the one unused for longest
        for unused in superfluous(list(self._graphs), capture.most_graphs):
            del self._graphs[unused]
        return graph

    def _capture(self, device: torch.device) -> Capture:
        if self._given is not None:
            return self._given
        require(device.type in GRAPHS_ON, "execution", f"'loop' or 'auto' on {device.type}, where nothing is recorded", "graph")
        if device not in self._captures:
            self._captures[device] = CudaCapture(device) if device.type == "cuda" else CpuCapture()
        return self._captures[device]


class _Graph:
    """The tensors that a graph reads, of one shape; `load` fills them."""

    replay: Callable[[], None]

    def __init__(self, process: ReverseProcess, x_t: Images, target: Target, capture: Capture) -> None:
        plan = process.plan.with_room(bucket_of(max(len(process.plan), WARM_UP + 1)))
        self.capacity = len(plan)
        self.x_t, self.step = x_t.clone(), torch.zeros((), dtype=torch.int64, device=x_t.device)
        self.target = tuple(map(torch.clone, target))
        own = process.derived().guide_noise
        guide_noise = None if own is None else GuideNoise(*map(torch.clone, own))
        self.process = process._replace(plan=plan, noise=NoiseKey(*map(torch.clone, process.noise)), guide_noise=guide_noise)
        self._prepare = getattr(process.model, "prepare", lambda plan: None)
        self._prepare(plan)
        self._plan: ReversePlan | None = None  # whose tables these are

    @staticmethod
    def detail(process: ReverseProcess) -> object:
        """What else of a process is captured."""
        return None

    def load(self, process: ReverseProcess, x_t: Images, target: Target) -> None:
        """Point the graph at another process of the same networks, at images and at what guides them."""
        self._tell_plan(process)
        self._fill(process, x_t, target)

    def _tell_plan(self, process: ReverseProcess) -> None:
        if process.plan is not self._plan:
            self.process.plan.load(process.plan)
            self._prepare(self.process.plan)
            self._plan = process.plan

    def _fill(self, process: ReverseProcess, x_t: Images, target: Target) -> None:
        for own, given in zip((*self.target, *_drawn_from(self.process)), (*target, *_drawn_from(process)), strict=True):
            if given is not own:
                own.copy_(given)
        self.x_t.copy_(x_t)
        self.step.zero_()


class _StepGraph(_Graph):
    """One guided step at the step counter, which it moves on: x_t is moved on, and its copy for the networks."""

    def __init__(self, process: ReverseProcess, x_t: Images, target: Target, capture: Capture) -> None:
        super().__init__(process, x_t, target, capture)
        self.branches = Branches(x_t.device)
        dtype = process.plan.net_dtype
        self.x_net = self.x_t if dtype is None else x_t.to(dtype, memory_format=torch.channels_last, copy=True)
        self.replay = capture(partial(self._advance, self._steps(process)))
        self._openings: dict[tuple[int, ...], tuple[Images, Callable[[], None]] | None] = {}  # by the strides of the images

    def _steps(self, process: ReverseProcess) -> tuple[Tensor, ...]:
        return (self.step,)

    def _fill(self, process: ReverseProcess, x_t: Images, target: Target) -> None:
        super()._fill(process, x_t, target)
        if self.x_net is not self.x_t:
            self.x_net.copy_(x_t)

    def open(self, process: ReverseProcess, x: Images, capture: Capture) -> None:
        """`load` what the process makes of `x`: by a graph, too, where one can be had."""
        self._tell_plan(process)
        for own, given in zip(self.process.noise, process.noise, strict=True):
            own.copy_(given)
        layout = x.stride()  # which may decide how a target is computed
        if layout not in self._openings:
            images = x.clone()
            try:
                self._openings[layout] = images, capture(partial(self._start, images))
            except CaptureError:  # a guide that reads its target back to the host, say: its pull may be captured still
                self._openings[layout] = None
        if (opening := self._openings[layout]) is None:
            self._start(x)
        else:
            opening[0].copy_(x)
            opening[1]()

    def _start(self, x: Images) -> None:
        process = self.process.derived()
        self._fill(process, process.start(x)[0], process.guide.target(x))

    def _advance(self, steps: tuple[Tensor, ...]) -> None:
        x_t, x_net = self.x_t, self.x_net
        for step in steps:
            x_t, x_net = self.process.step(x_t, x_net, self.target, step, self.branches)
        self.x_t.copy_(x_t)
        if self.x_net is not self.x_t:
            self.x_net.copy_(x_net)
        self.step.add_(1)


class _PlanGraph(_StepGraph):
    """All steps of a plan, one after another."""

    @staticmethod
    def detail(process: ReverseProcess) -> object:
        return len(process.plan)

    def _steps(self, process: ReverseProcess) -> tuple[Tensor, ...]:
        return self.process.plan.steps[: len(process.plan)]


class _AdjointGraph(_Graph):
    """One step of E15, recomputed and differentiated: the adjoint is carried back, the gradient to the target added up."""

    def __init__(self, process: ReverseProcess, x_t: Images, target: Target, capture: Capture) -> None:
        super().__init__(process, x_t, target, capture)
        self.adjoint = torch.zeros_like(self.x_t)
        self.totals = tuple(torch.zeros_like(part) for part in self.target)
        self.replay = capture(self._go_back)

    @staticmethod
    def detail(process: ReverseProcess) -> object:
        return process.follow_guide

    def begin(self, adjoint: Images) -> None:
        """Start from the gradient at x_0."""
        self.adjoint.copy_(adjoint)
        for total in self.totals:
            total.zero_()

    def _go_back(self) -> None:
        adjoint, pulls = self.process.step_adjoint(self.adjoint, self.x_t, self.target, self.step)
        self.adjoint.copy_(adjoint)
        for total, pull in zip(self.totals, pulls, strict=True):
            total.add_(pull)


def _drawn_from(process: ReverseProcess) -> tuple[Tensor, ...]:
    return *process.noise, *(process.guide_noise or ())
