"""One loop for every trainer: seeded, reported, checkpointed, and resumable to bit-equal weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from purify_engine.config import Training, to_dict
from purify_engine.training.batches import augment, batch_indices, seed_everything
from purify_engine.training.checkpoint import load_checkpoint, save_checkpoint
from purify_engine.training.progress import LossMeter, Progress
from purify_engine.training.record import TrainingSet
from purify_engine.types import Images, Labels

Tensors = tuple[Tensor, ...] | list[Tensor]
Loss = Callable[[Images, Any], Tensor]  # (a batch, its labels or None) -> mean loss


@dataclass(kw_only=True)
class Loop:
    """A network being trained: what a step changes is what a checkpoint holds."""

    name: str  # stem of the files it writes: unet, guide, classifier
    model: nn.Module
    network: Any  # the model's configuration
    config: Training
    optimizer: torch.optim.Optimizer
    rate: Callable[[int], float]  # step -> factor on the learning rate
    loss: Loss
    out_dir: Path
    data: TrainingSet | None = None  # what it is trained on: another set does not resume it
    gradient_clip: float = math.inf
    average: MovingAverage | None = None
    step: int = 0

    def run(self, images: Images, labels: Labels | None, *, resume: bool, progress: Progress) -> None:
        """Train until `config.steps`; the caller's random generators are left as they were found."""
        if resume and self.checkpoint_path.exists():
            self._restore()
        meter = LossMeter()
        with torch.random.fork_rng(devices=[images.device] if images.is_cuda else []):
            while self.step < self.config.steps:
                meter.add(self._advance(images, labels))
                if self._due(self.config.checkpoint_every):
                    self._save()
                if self._due(self.config.report_every):
                    progress(self._report(meter))

    @property
    def checkpoint_path(self) -> Path:
        """Where an interrupted run continues from."""
        return self.out_dir / f"{self.name}.checkpoint"

    def _advance(self, images: Images, labels: Labels | None) -> Tensor:
        """One optimizer step. It draws from (seed, step) alone, so nothing about randomness needs saving."""
        seed_everything(self.config.seed, f"step {self.step}")
        chosen = batch_indices(self.step, self.config.batch_size, len(images), self.config.seed).to(images.device)
        batch = augment(images[chosen], self.config.shift, self.config.flip)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * self.rate(self.step)
        self.model.train()
        loss = self.loss(batch, None if labels is None else labels[chosen])
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.gradient_clip)
        self.optimizer.step()
        self.step += 1
        if self.average is not None:
            self.average.update_parameters(self.model)
        return loss

    def _due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.config.steps

    def _report(self, meter: LossMeter) -> dict[str, Any]:
        loss, seconds = meter.read()
        if not math.isfinite(loss):
            raise FloatingPointError(f"{self.name}: the loss is {loss} at step {self.step}; lower learning_rate")
        return {
            "network": self.name,
            "step": self.step,
            "steps": self.config.steps,
            "loss": loss,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "images_per_second": self.config.batch_size / seconds,
            "seconds_left": seconds * (self.config.steps - self.step),
        }

    def _experiment(self) -> dict[str, Any]:
        data = {} if self.data is None else {"pixels": self.data.sha256, "labels": self.data.labels_sha256}
        return {"name": self.name, **to_dict(self.network), **to_dict(self.config), **data}

    def _save(self) -> None:
        state = {"experiment": self._experiment(), "step": self.step, "model": self.model.state_dict()}
        state["optimizer"] = self.optimizer.state_dict()
        state["average"] = None if self.average is None else self.average.state_dict()
        save_checkpoint(self.checkpoint_path, state)

    def _restore(self) -> None:
        state = load_checkpoint(self.checkpoint_path, self._experiment())
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])


class MovingAverage(AveragedModel):
    """An exponential moving average of a network's weights and buffers; younger than 1 / (1 - decay) steps, it forgets faster.

    The initial weights are the first that it averages: after step n, counted from 1, it keeps min(decay, (1 + n) / (10 + n)) of
    itself. `module` is the averaged network, frozen and in eval mode.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model, multi_avg_fn=self._move, use_buffers=True)
        self.decay = decay
        self.module.eval().requires_grad_(False)
        self.n_averaged = torch.tensor(1, device="cpu")  # where `_move` reads it

    def _move(self, averaged: Tensors, current: Tensors, _: Tensor | int) -> None:
        if averaged[0].is_floating_point():
            step = int(self.n_averaged)  # kept on the CPU; the copy passed in lies on the device, and reading it would wait
            get_ema_multi_avg_fn(min(self.decay, (1 + step) / (10 + step)))(averaged, current, step)
        else:
            torch._foreach_copy_(averaged, current)  # a counter has no average


def initialised(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """`build()`, on the CPU, with weights that follow from `seed`; the caller's random generators are left as they were found."""
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        seed_everything(seed, "initialisation")
        return build()


def warmup_cosine(step: int, steps: int, warmup_steps: int = 0) -> float:
    """Factor on the learning rate: linear up over `warmup_steps`, then half a cosine down to 0."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, steps - warmup_steps)))
