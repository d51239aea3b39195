"""torch.compile in each of its modes, as its documentation recommends for speed, on the same purification.

It guides as the eager baseline does: the guide's gradient is taken by autograd from outside, through a compiled forward pass.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from bench.core.comparison import AbsentError
from bench.core.compiler_modes import MODES, NAME
from bench.core.run import Run
from bench.core.turns import Turns
from purify_engine.benchmark.eager_baseline import EagerPurifier, Noise, Row
from purify_engine.engine.plan import ReversePlan
from purify_engine.purifier import GuidedPurifier
from purify_engine.types import Images


def options_of(mode: str) -> dict[str, Any]:
    """A mode's options in this PyTorch, with our changes to those that it knows."""
    from torch import _inductor as inductor

    known = inductor.list_options()
    return {**inductor.list_mode_options(mode), **{name: value for name, value in MODES[mode].items() if name in known}}


class Compiled:
    """A maker of one variant whose compiling is asked for beforehand, by `prepare`, since it takes minutes."""

    def __init__(self, run: Run, mode: str, turns: Turns, seconds: float = float("inf")) -> None:
        self.run, self.mode, self.turns, self.seconds = run, mode, turns, seconds
        self.made: CompiledPurifier | Exception = AbsentError("it was not compiled")

    def prepare(self, purifier: GuidedPurifier, images: Images) -> None:
        """Compile for these images within `seconds`; what goes wrong is raised by the call below."""
        low = purifier.device.type == "cuda"
        dtype = torch.bfloat16 if low else torch.float32
        try:
            with torch.no_grad(), limited(self.seconds):
                with self.turns.choosing():  # once a thread and shape, for whatever asks afterwards
                    EagerPurifier(purifier.configured(num_steps=1), dtype, channels_last=True)(images)
                made = CompiledPurifier(purifier, dtype, self.mode, toy=self.run.toy)
                made.on_plan(purifier.configured(num_steps=1).plan())(images)
                self.made = made
        except Exception as fault:
            self.made = fault

    @property
    def failed(self) -> bool:
        """Whether there is nothing to measure."""
        return isinstance(self.made, Exception)

    def __call__(self, purifier: GuidedPurifier) -> CompiledPurifier:
        if isinstance(self.made, Exception):
            raise self.made
        return self.made


class CompiledPurifier(EagerPurifier):
    """Fullgraph, static shapes, CUDA graphs: U-Net and update as one graph, the guide's two passes as others.

    mode: one of `MODES`. `toy` traces, and compiles nothing.
    """

    def __init__(self, purifier: GuidedPurifier, dtype: torch.dtype, mode: str, *, toy: bool = False) -> None:
        super().__init__(purifier, dtype, channels_last=True)
        self.options = options_of(mode)
        how: dict[str, Any] = {"backend": "eager"} if toy else {"options": self.options}
        self.compiled_update = torch.compile(self.update, fullgraph=True, dynamic=False, **how)
        self.compiled_objective = torch.compile(super().objective, fullgraph=True, dynamic=False, **how)

    def load_schedule(self, plan: ReversePlan) -> None:
        super().load_schedule(plan)
        self.table = torch.stack([torch.stack(column) for column in self.columns], dim=1)  # [N, 7]: one input of the graph a step

    def step(self, x_t: Images, target: tuple[Tensor, ...], row: Row, noise: Noise, step: int) -> Images:
        torch.compiler.cudagraph_mark_step_begin()
        pull = self.pull(x_t, x_t, target, row, noise, step)
        assert pull is not None and self.config.guidance.look_at == "xt", "compiled for guidance at x_t"
        # A replay overwrites what the one before it returned.
        return self.compiled_update(x_t, pull, noise(x_t, step), self.table[step]).clone()

    def update(self, x_t: Images, pull: Images, noise: Images, numbers: Tensor) -> Images:
        """One guided reverse step, the noise and the guide's pull given."""
        a, b, d, c, _, _, t = numbers.unbind()
        eps = self.unet(x_t.to(self.dtype, memory_format=torch.channels_last), t.expand(len(x_t)))
        return a * x_t + b * eps + d * pull + c * noise

    def objective(self, view: Images, features: Tensor, label: Tensor) -> Tensor:
        return self.compiled_objective(view, features, label)

    def confirm_graphs(self, run: Run, images: Images) -> None:
        """Look whether a call replays CUDA graphs: torch.compile falls back to launching kernels in silence."""
        for _ in range(3):  # graphs are recorded in the second call
            self(images)
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
            self(images)
        launches = sum(event.count for event in seen.key_averages() if event.key == "cudaGraphLaunch")
        says = f"{launches} graph launches in {self.num_steps} steps"
        run.check(f"{NAME} replays CUDA graphs", launches >= 2 * self.num_steps, says)


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise `AbsentError` where the work takes longer. For the main thread only."""
    if seconds == float("inf"):
        yield
        return
    over: list[int] = []

    def ring(signum: int, frame: Any) -> None:
        over.append(signum)
        raise AbsentError(f"compiling was not done within {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))
    try:
        yield
    except Exception as fault:
        if over and not isinstance(fault, AbsentError):  # PyTorch wraps what its compiler raises
            raise AbsentError(f"compiling was not done within {seconds:.0f} s") from fault
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
