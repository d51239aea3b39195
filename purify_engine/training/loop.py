"""One loop for every trainer: seeded, reported, checkpointed, and resumable to bit-equal weights."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from purify_engine.config import Training, require, to_dict
from purify_engine.training.batches import augment, batch_indices, seed_everything
from purify_engine.training.checkpoint import load_checkpoint, save_checkpoint
from purify_engine.training.computing import Computing
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
    rate: Callable[[float], float]  # how many of the steps are done -> factor on the learning rate
    loss: Loss
    out_dir: Path
    data: TrainingSet | None = None  # what it is trained on: another set does not resume it
    gradient_clip: float = math.inf
    averages: dict[str, MovingAverage] = field(default_factory=dict)  # of the weights, by their decays
    seconds: float | None = None  # of wall-clock time that all runs together may take
    clock: Callable[[], float] = time.monotonic
    step: int = 0
    elapsed: float = 0.0  # seconds of the runs before this one

    def run(self, images: Images, labels: Labels | None, *, resume: bool, progress: Progress) -> None:
        """Train until `config.steps`, or until `seconds` are over; the caller's random generators are left as they were found."""
        require(self.seconds is None or self.seconds > 0, "seconds", "positive, or None", self.seconds)
        self.computing = Computing(self.model, self.config)
        if resume and self.checkpoint_path.exists():
            self._restore()
        meter, self.began = LossMeter(), self.clock()
        with torch.random.fork_rng(devices=[images.device] if images.is_cuda else []):
            over = self._is_over()
            while not over:
                meter.add(self._advance(images, labels))
                over = self._is_over()
                if over or self.step % self.config.checkpoint_every == 0:
                    self._save()
                if over or self.step % self.config.report_every == 0:
                    progress(self._report(meter, over))

    @property
    def checkpoint_path(self) -> Path:
        """Where an interrupted run continues from."""
        return self.out_dir / f"{self.name}.checkpoint"

    def _advance(self, images: Images, labels: Labels | None) -> Tensor:
        """One optimizer step. It draws from (seed, step) alone, so nothing about randomness needs saving."""
        seed_everything(self.config.seed, f"step {self.step}")
        chosen = batch_indices(self.step, self.config.batch_size, len(images), self.config.seed).to(images.device)
        batch = self.computing.laid_out(augment(images[chosen], self.config.shift, self.config.flip))
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * self.rate(self._position())
        self.model.train()
        with self.computing.autocast():
            loss = self.loss(batch, None if labels is None else labels[chosen])
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.gradient_clip)
        self.optimizer.step()
        self.step += 1
        for average in self.averages.values():
            average.update_parameters(self.model)
        return loss

    def _spent(self) -> float:
        """Seconds of all runs up to now."""
        return self.elapsed + self.clock() - self.began

    def _position(self) -> float:
        """How much of the training is done, in steps: those taken, or the share of the time that is over, whichever is more."""
        if self.seconds is None:
            return self.step
        return max(self.step, self.config.steps * min(1.0, self._spent() / self.seconds))

    def _is_over(self) -> bool:
        out_of_time = self.seconds is not None and self.step > 0 and self._spent() >= self.seconds
        return self.step >= self.config.steps or out_of_time

    def _report(self, meter: LossMeter, over: bool) -> dict[str, Any]:
        loss, seconds = meter.read()
        if not math.isfinite(loss):
            raise FloatingPointError(f"{self.name}: the loss is {loss} at step {self.step}; lower learning_rate")
        left = 0 if over else self.config.steps - self.step
        if self.seconds is not None:
            left = min(left, math.ceil(max(0.0, self.seconds - self._spent()) / seconds))
        return {
            "network": self.name,
            "step": self.step,
            "steps": self.step + left,
            "loss": loss,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "images_per_second": self.config.batch_size / seconds,
            "seconds_left": seconds * left,
        }

    def _experiment(self) -> dict[str, Any]:
        data = {} if self.data is None else {"pixels": self.data.sha256, "labels": self.data.labels_sha256}
        return {"name": self.name, **to_dict(self.network), **to_dict(self.config), **data}

    def _save(self) -> None:
        state = {"experiment": self._experiment(), "step": self.step, "seconds": self._spent(), "model": self.model.state_dict()}
        state["optimizer"] = self.optimizer.state_dict()
        state["averages"] = {decay: average.state_dict() for decay, average in self.averages.items()}
        save_checkpoint(self.checkpoint_path, state)

    def _restore(self) -> None:
        state = load_checkpoint(self.checkpoint_path, self._experiment())
        self.step, self.elapsed = state["step"], state["seconds"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for decay, average in self.averages.items():
            average.load_state_dict(state["averages"][decay])


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


def averages_of(model: nn.Module, config: Training) -> dict[str, MovingAverage]:
    """The moving averages that a configuration asks for, by their decays; the one that it names comes first."""
    named = () if config.ema_decay is None else (config.ema_decay,)
    return {str(decay): MovingAverage(model, decay) for decay in (*named, *config.other_ema_decays)}
