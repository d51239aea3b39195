"""torch.compile, as its documentation recommends for speed, on the same purification; it guides as the eager baseline does."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from bench.core.run import Run
from purify_engine.benchmark.eager_baseline import EagerPurifier, Noise, Row
from purify_engine.engine.plan import ReversePlan
from purify_engine.purifier import GuidedPurifier
from purify_engine.types import Images


def compiled(run: Run, purifier: GuidedPurifier) -> CompiledPurifier:
    """The purifier under torch.compile; on a GPU in bf16."""
    on_gpu = purifier.seed.device.type == "cuda"
    return CompiledPurifier(purifier, torch.bfloat16 if on_gpu else torch.float32, toy=run.toy)


class CompiledPurifier(EagerPurifier):
    """max-autotune with CUDA graphs, fullgraph, static shapes: U-Net and update as one graph, the guide's two passes as others.

    The guide's gradient is taken by autograd from outside, through a compiled forward pass. `toy` traces, and compiles nothing.
    """

    def __init__(self, purifier: GuidedPurifier, dtype: torch.dtype, *, toy: bool = False) -> None:
        super().__init__(purifier, dtype, channels_last=True)
        how: dict[str, Any] = {"backend": "eager"} if toy else {"mode": "max-autotune"}
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
        run.check("torch.compile replays CUDA graphs", launches >= 2 * self.num_steps, says)
