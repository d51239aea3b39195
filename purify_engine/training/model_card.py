"""Model cards: what a network is, what it learned from and how well, written beside its weights by the code that trained it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from purify_engine import markdown
from purify_engine.config import Training, to_dict
from purify_engine.files import write_text
from purify_engine.folders import add_to_config
from purify_engine.models.checkpoints import save_safetensors
from purify_engine.training.record import TrainingSet


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

    def render(self) -> str:
        """The card in Markdown."""
        count = f"{self.data.images:,} images of shape {'x'.join(map(str, self.data.shape))}"
        pixels = f"SHA-256 of their pixels: `{self.data.sha256}`."
        names = "" if self.class_names is None else f" Classes, from 0: {', '.join(self.class_names)}."
        sections = [
            f"# {self.title}",
            f"{self.what} Weights: `{self.name}.safetensors`, {self.parameters:,} parameters. Written by "
            f"`purify_engine.training` (PyTorch {torch.__version__}).",
            f"## Data\n{self.data.source}\n\nTrained on {count}; seed {self.config.seed}. {pixels}{names}",
            f"## Figures, measured after training\n{_table('figure', 'value', self.figures)}",
            f"## Network: {type(self.network).__name__}\n{_table('field', 'value', to_dict(self.network))}",
            f"## Training: {type(self.config).__name__}\n{_table('field', 'value', _flat(to_dict(self.config)))}",
            f"## Intended use\n{self.use}",
            f"## Limits\n{self.limits}",
        ]
        return "\n\n".join(sections) + "\n"


def publish(model: nn.Module, card: ModelCard, out_dir: Path) -> None:
    """Write `<name>.safetensors` and `<name>.md`, each whole or not at all, and what both say into the folder's `config.json`.

    The checkpoint they came from goes last, so that a training that was stopped in between can be resumed.
    """
    save_safetensors(model, out_dir / f"{card.name}.safetensors")
    write_text(out_dir / f"{card.name}.md", card.render())
    trained = {"data": to_dict(card.data), **to_dict(card.config)}
    parts = {card.name: card.network, "training": {card.name: trained}, "class_names": {card.name: card.class_names}}
    add_to_config(out_dir, **parts)
    (out_dir / f"{card.name}.checkpoint").unlink(missing_ok=True)


def count_parameters(model: nn.Module) -> int:
    """How many numbers the network has learned."""
    return sum(math.prod(parameter.shape) for parameter in model.parameters())


def _table(key: str, value: str, rows: dict[str, Any]) -> str:
    return markdown.table((key, value), [(name, _shown(entry)) for name, entry in rows.items()], left=(0, 1))


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
