"""One loop for every trainer: seeded, reported, checkpointed, and resumable to bit-equal weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from purify_engine.config import Training, to_dict
from purify_engine.training.batches import augment, batch_indices, seed_everything
from purify_engine.training.checkpoint import load_checkpoint, save_checkpoint
from purify_engine.training.progress import Meter, Progress
from purify_engine.types import Images, Labels

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
    gradient_clip: float = math.inf
    average: Average | None = None
    step: int = 0

    def run(self, images: Images, labels: Labels | None, *, resume: bool, progress: Progress) -> None:
        """Train until `config.steps`; the caller's random generators are left as they were found."""
        if resume and self.checkpoint_path.exists():
            self._restore()
        meter = Meter()
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
            self.average.update(self.model, self.step)
        return loss

    def _due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.config.steps

    def _report(self, meter: Meter) -> dict[str, Any]:
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
        return {"name": self.name, **to_dict(self.network), **to_dict(self.config)}

    def _save(self) -> None:
        state = {"experiment": self._experiment(), "step": self.step, "model": self.model.state_dict()}
        state["optimizer"] = self.optimizer.state_dict()
        state["average"] = None if self.average is None else self.average.model.state_dict()
        save_checkpoint(self.checkpoint_path, state)

    def _restore(self) -> None:
        state = load_checkpoint(self.checkpoint_path, self._experiment())
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.model.load_state_dict(state["average"])


class Average:
    """An exponential moving average of a network's weights; younger than 1 / (1 - decay) steps, it forgets faster."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move towards `model` after its step number `step`, counted from 1."""
        decay = min(self.decay, (1 + step) / (10 + step))
        averaged, current = self.model.state_dict(), model.state_dict()
        for name, value in current.items():
            if value.is_floating_point():
                averaged[name].lerp_(value, 1 - decay)
            else:
                averaged[name].copy_(value)


def initialised(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """`build()` with weights that follow from `seed`; the caller's random generators are left as they were found."""
    with torch.random.fork_rng(devices=[]):
        seed_everything(seed, "initialisation")
        return build()


def warmup_cosine(step: int, steps: int, warmup_steps: int = 0) -> float:
    """Factor on the learning rate: linear up over `warmup_steps`, then half a cosine down to 0."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, steps - warmup_steps)))
