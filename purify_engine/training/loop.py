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
from purify_engine.training.batches import augment, batch_indices, pixels, seed_everything
from purify_engine.training.checkpoint import load_checkpoint, save_checkpoint
from purify_engine.training.computing import Computing
from purify_engine.training.interruption import Interruption
from purify_engine.training.outcome import Outcome
from purify_engine.training.processes import Processes, join
from purify_engine.training.progress import LossMeter, Progress, silent
from purify_engine.training.record import TrainingSet
from purify_engine.types import Images, Labels

Tensors = tuple[Tensor, ...] | list[Tensor]
Draw = Callable[[Images], tuple[Tensor, ...]]  # a batch -> what is drawn for it, each tensor with an entry an image
Loss = Callable[..., Tensor]  # (images, their labels or None, what was drawn for them ...) -> mean loss
HOW = ("accumulate", "precision", "compile", "report_every", "checkpoint_every")  # settings that a resumed run may change


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
    draw: Draw = lambda images: ()
    data: TrainingSet | None = None  # what it is trained on: another set does not resume it
    gradient_clip: float = math.inf
    averages: dict[str, MovingAverage] = field(default_factory=dict)  # of the weights, by their decays
    seconds: float | None = None  # of wall-clock time that all runs together may take
    clock: Callable[[], float] = time.monotonic
    step: int = 0
    outcome: Outcome = field(default_factory=Outcome)
    processes: Processes = field(default_factory=join)

    def run(self, images: Images, labels: Labels | None, *, resume: bool, progress: Progress) -> None:
        """Train until `config.steps`, or until `seconds` are over; the caller's random generators are left as they were found.

        images: float in [0, 1], or uint8. Ctrl-C and SIGTERM take effect once a checkpoint is written. FloatingPointError: the
        loss, or a weight, is no finite number.
        """
        require(self.seconds is None or self.seconds > 0, "seconds", "positive, or None", self.seconds)
        self.parts = self.processes.parts(self.config.batch_size, self.config.accumulate)
        self.computing = Computing(self.model, self.config)
        self.told = progress if self.processes.is_first else silent
        if resume and self.checkpoint_path.exists():
            self._restore()
        else:
            self.outcome.begin_run(self.step, self._described())
        meter, self.last, self.saved = LossMeter(), self.clock(), self.step
        with Interruption() as interruption, torch.random.fork_rng(devices=[images.device] if images.is_cuda else []):
            stopping = self._look_at_the_clock(interruption)
            over = self._is_over()
            while not over and not stopping:
                meter.add(self._advance(images, labels))
                stopping = self._look_at_the_clock(interruption)
                over = self._is_over()
                self._record(meter, over=over, stopping=stopping)
        self.computing.release()
        if stopping:
            self.told({"network": self.name, "stopped": self.step, "steps": self.config.steps})
            interruption.take_effect()

    @property
    def checkpoint_path(self) -> Path:
        """Where an interrupted run continues from."""
        return self.out_dir / f"{self.name}.checkpoint"

    def _advance(self, images: Images, labels: Labels | None) -> Tensor:
        """One optimizer step. It draws from (seed, step) alone, so nothing about randomness needs saving."""
        seed_everything(self.config.seed, f"step {self.step}")
        chosen = batch_indices(self.step, self.config.batch_size, len(images), self.config.seed).to(images.device)
        batch = self.computing.laid_out(augment(pixels(images[chosen]), self.config.shift, self.config.flip))
        drawn = self.draw(batch)
        if not self.processes.is_first:  # dropout, which is drawn as the network runs, differs between the processes
            seed_everything(self.config.seed, f"step {self.step}, process {self.processes.rank}")
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * self.rate(self._position())
        self.model.train()
        self.optimizer.zero_grad()
        loss = self._tried(batch, None if labels is None else labels[chosen], drawn)
        nn.utils.clip_grad_norm_(self.model.parameters(), self.gradient_clip)
        self.optimizer.step()
        self.step += 1
        self.processes.average_buffers(self.model)
        for average in self.averages.values():
            average.update_parameters(self.model)
        return loss

    def _tried(self, batch: Images, labels: Labels | None, drawn: tuple[Tensor, ...]) -> Tensor:
        """`_descend`, or where a compiled network fails in the first step, once more as it is written."""
        try:
            loss = self._descend(batch, labels, drawn)
        except Exception as failed:
            if not self.computing.give_up_compiling():
                raise
            reason = str(failed).strip().splitlines() or [""]
            self.told({"network": self.name, "note": f"{self.name}: not compiled ({type(failed).__name__}: {reason[0][:200]})"})
            self.optimizer.zero_grad()
            loss = self._descend(batch, labels, drawn)
        self.computing.on_trial = False
        return loss

    def _descend(self, batch: Images, labels: Labels | None, drawn: tuple[Tensor, ...]) -> Tensor:
        """The batch's mean loss, its gradient left in the parameters: of all parts, and of all processes."""
        total = torch.zeros((), device=batch.device)
        for part in self.parts:
            with self.computing.autocast():
                loss = self.loss(batch[part], None if labels is None else labels[part], *(each[part] for each in drawn))
            share = loss * ((part.stop - part.start) / len(batch))
            share.backward()
            total = total + share.detach()
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        self.processes.add_up([*gradients, total])
        return total

    def _look_at_the_clock(self, interruption: Interruption) -> bool:
        """Count the seconds up to now, which all processes agree on; whether a signal came to any of them."""
        now = self.clock()
        spent, self.last = self.outcome.seconds + now - self.last, now
        self.outcome.seconds, asked = self.processes.largest((spent, float(interruption.requested)), self.computing.device)
        return bool(asked)

    def _position(self) -> float:
        """How much of the training is done, in steps: those taken, or the share of the time that is over, whichever is more."""
        if self.seconds is None:
            return self.step
        return max(self.step, self.config.steps * min(1.0, self.outcome.seconds / self.seconds))

    def _is_over(self) -> bool:
        out_of_time = self.seconds is not None and self.step > 0 and self.outcome.seconds >= self.seconds
        return self.step >= self.config.steps or out_of_time

    def _record(self, meter: LossMeter, *, over: bool, stopping: bool) -> None:
        """Checkpoint and report, where they are due; a checkpoint is only written of finite weights."""
        self.outcome.steps = self.step
        saves = over or stopping or self.step % self.config.checkpoint_every == 0
        reports = over or self.step % self.config.report_every == 0
        if saves or reports:
            self._require_finite(meter, weights=saves)
        report = self._report(meter, over) if reports else None
        if saves:
            self._save()
        if report is not None:
            self.told(report)

    def _require_finite(self, meter: LossMeter, *, weights: bool) -> None:
        found = meter.first_broken()
        ago, what = (0, "a weight is not finite") if found is None else (found[0], f"the loss is {found[1]}")
        finite = not weights or all(bool(parameter.isfinite().all()) for parameter in self.model.parameters())
        if found is not None or not finite:
            kept = f"; {self.checkpoint_path.name} is kept as of step {self.saved}" if self.saved else ""
            raise FloatingPointError(
                f"{self.name}: {what} at step {self.step - ago}, at a learning rate of "
                f"{self.optimizer.param_groups[0]['lr']:.3g}: lower learning_rate or lengthen warmup_steps{kept}"
            )

    def _report(self, meter: LossMeter, over: bool) -> dict[str, Any]:
        loss, seconds = meter.read()
        left = 0 if over else self.config.steps - self.step
        if self.seconds is not None:
            left = min(left, math.ceil(max(0.0, self.seconds - self.outcome.seconds) / seconds))
        rate = self.optimizer.param_groups[0]["lr"]
        spent = round(self.outcome.seconds, 3)
        self.outcome.note({"step": self.step, "loss": loss, "learning_rate": rate, "seconds": spent})
        return {
            "network": self.name,
            "step": self.step,
            "steps": self.step + left,
            "loss": loss,
            "learning_rate": rate,
            "images_per_second": self.config.batch_size / seconds,
            "seconds_left": seconds * left,
        }

    def _experiment(self) -> dict[str, Any]:
        data = {} if self.data is None else {"pixels": self.data.sha256, "labels": self.data.labels_sha256}
        return {"name": self.name, **to_dict(self.network), **to_dict(self.config), **data}

    def _described(self) -> dict[str, Any]:
        """What this run computes on, and the settings that another run may change."""
        settings = {name: getattr(self.config, name) for name in HOW if name != "precision"}
        return {**self.computing.described(), "processes": self.processes.count, **settings}

    def _save(self) -> None:
        self.saved = self.step
        if not self.processes.is_first:
            return
        state = {"experiment": self._experiment(), "step": self.step, "outcome": to_dict(self.outcome)}
        state |= {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        state["averages"] = {decay: average.state_dict() for decay, average in self.averages.items()}
        save_checkpoint(self.checkpoint_path, state)

    def _restore(self) -> None:
        """Go on from the checkpoint; where it was written on something else, say so."""
        state = load_checkpoint(self.checkpoint_path, self._experiment(), free=HOW)
        self.step, self.outcome = state["step"], Outcome(**state["outcome"])
        self.model.load_state_dict(state["model"])
        for group, here in zip(state["optimizer"]["param_groups"], self.optimizer.param_groups, strict=True):
            group["fused"] = here.get("fused")  # of the device that goes on
        self.optimizer.load_state_dict(state["optimizer"])
        for decay, average in self.averages.items():
            average.load_state_dict(state["averages"][decay])
        changed = self.outcome.begin_run(self.step, self._described())
        if changed:
            words = ", ".join(f"{name} {now} ({then} before)" for name, (then, now) in changed.items())
            note = f"{self.name}: goes on at step {self.step} with {words}; the results differ by rounding"
            self.told({"network": self.name, "note": note})


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
