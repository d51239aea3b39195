"""Model cards: what a network is, what it learned from and how well, written beside its weights by the code that trained it."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from purify_engine import markdown
from purify_engine.config import Training, to_dict
from purify_engine.files import write_text
from purify_engine.folders import add_to_config
from purify_engine.models.checkpoints import save_safetensors
from purify_engine.models.checkpoints.network import sha256
from purify_engine.training.outcome import Outcome, curve
from purify_engine.training.record import TrainingSet

TOLD = ("data", "network", "config", "class_names", "parameters", "figures")


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """Everything a card says; `render` turns it into Markdown."""

    name: str  # stem of the weights file
    title: str
    what: str  # one sentence
    data: TrainingSet  # the images learned from
    parameters: int
    network: Any
    config: Training
    figures: dict[str, float]
    use: str
    limits: str
    class_names: tuple[str, ...] | None = None  # of the classes 0, 1, ..., where the images' source names them

    def render(self, outcome: Outcome | None = None, sha256: str = "") -> str:
        """The card in Markdown; `outcome`: how the training went, `sha256`: of the weights file."""
        count = f"{self.data.images:,} images of shape {'x'.join(map(str, self.data.shape))}"
        pixels = f"SHA-256 of their pixels: `{self.data.sha256}`."
        names = "" if self.class_names is None else f" Classes, from 0: {', '.join(self.class_names)}."
        sections = [
            f"# {self.title}",
            f"{self.what} Weights: `{self.name}.safetensors`, {self.parameters:,} parameters. Written by "
            f"`purify_engine.training` (PyTorch {torch.__version__}).{sha256 and f' SHA-256 of the weights: `{sha256}`.'}",
            f"## Data\n{self.data.source}\n\nTrained on {count}; seed {self.config.seed}. {pixels}{names}",
            f"## Figures, measured after training\n{_table('figure', 'value', self.figures)}",
            *([] if outcome is None else [f"## Course\n{self._course(outcome)}"]),
            f"## Network: {type(self.network).__name__}\n{_table('field', 'value', to_dict(self.network))}",
            f"## Training: {type(self.config).__name__}\n{_table('field', 'value', _flat(to_dict(self.config)))}",
            f"## Intended use\n{self.use}",
            f"## Limits\n{self.limits}",
        ]
        return "\n\n".join(sections) + "\n"

    def _course(self, outcome: Outcome) -> str:
        early = "" if outcome.steps == self.config.steps else f" of {self.config.steps:,}, when its time was over"
        runs = "; ".join(_run(run) for run in outcome.runs)
        image = f"\n\n![Loss by step]({self.name}.svg)" if curve(outcome.history, self.title) else ""
        return f"{outcome.steps:,} steps{early}, in {outcome.seconds:,.0f} seconds. Computed {runs}.{image}"


def publish(model: nn.Module, card: ModelCard, out_dir: Path, outcome: Outcome | None = None) -> None:
    """Write `<name>.safetensors` and `<name>.md`, each whole or not at all, and what both say into the folder's `config.json`.

    With an `outcome` also `<name>.svg`, its learning curve, and `<name>.training.json`, all that the card tells as data. The
    checkpoint they came from goes last, so that a training that was stopped in between can be resumed.
    """
    weights = out_dir / f"{card.name}.safetensors"
    save_safetensors(model, weights)
    digest = sha256(weights)
    if outcome is not None:
        drawn = curve(outcome.history, card.title)
        if drawn is not None:
            write_text(out_dir / f"{card.name}.svg", drawn)
        told = {"weights_sha256": digest, **{part: _plain(getattr(card, part)) for part in TOLD}, **to_dict(outcome)}
        write_text(out_dir / f"{card.name}.training.json", json.dumps(told, indent=1) + "\n")
    write_text(out_dir / f"{card.name}.md", card.render(outcome, digest))
    trained = {"data": to_dict(card.data), **to_dict(card.config)}
    parts = {card.name: card.network, "training": {card.name: trained}, "class_names": {card.name: card.class_names}}
    add_to_config(out_dir, **parts)
    (out_dir / f"{card.name}.checkpoint").unlink(missing_ok=True)


def count_parameters(model: nn.Module) -> int:
    """How many numbers the network has learned."""
    return sum(math.prod(parameter.shape) for parameter in model.parameters())


def _run(run: dict[str, Any]) -> str:
    """What one run computed on, in words."""
    where = run["processor"] or run["device"]
    words = [f"from step {run['from_step']:,} on {where} in {run['precision']}, {run['memory_format']}"]
    words += [f"TF32 in {' and '.join(run['tf32'])}"] * bool(run["tf32"])
    words += [f"{run['processes']} processes"] * (run["processes"] > 1)
    words += [f"batches in {run['accumulate']} parts"] * (run["accumulate"] > 1)
    words += ["compiled"] * run["compile"]
    return ", ".join([*words, f"PyTorch {run['torch']}"])


def _plain(part: Any) -> Any:
    return to_dict(part) if is_dataclass(part) and not isinstance(part, type) else part


def _table(key: str, value: str, rows: dict[str, Any]) -> str:
    return markdown.table((key, value), [(name, _shown(entry)) for name, entry in rows.items()], left=(0, 1))


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
