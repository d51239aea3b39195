"""Networks into a purifier's folder: their weights as safetensors, and what `config.json` says of them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from purify_engine.config import PurifierConfig
from purify_engine.folders import write_config
from purify_engine.models.checkpoints import save_safetensors
from purify_engine.models.checkpoints.safetensors import write_tensors
from purify_engine.models.classifiers import Classifier
from purify_engine.models.denoiser import Denoiser
from purify_engine.models.own import AnyDenoiser, AnyGuide, OwnDenoiser, OwnGuide


def save_networks(
    folder: Path, denoiser: AnyDenoiser, guide: AnyGuide | None, config: PurifierConfig, classifier: Classifier | None = None
) -> None:
    """Write what `presets.load_networks` and, where there is a classifier, `load_classifier` read.

    Of networks that are not ours, the weights and what their adapters say; TypeError where they have no adapter.
    """
    parts = [_part(network, part) for network, part in ((denoiser, "denoiser"), (guide, "guide")) if network is not None]
    parts += [] if classifier is None else [SavedPart("classifier", classifier, classifier.config)]
    folder.mkdir(parents=True, exist_ok=True)
    for part in parts:
        path = folder / f"{part.name}.safetensors"
        if part.name.startswith("own"):
            write_tensors(_apart(part.network), path)
        else:
            save_safetensors(part.network, path)
    names = {part.name: part.network.class_names for part in parts if isinstance(part.network, Classifier)}
    known = {name: said for name, said in names.items() if said is not None} or None
    write_config(folder, **{part.name: part.config for part in parts}, purifier=config, class_names=known)


class SavedPart(NamedTuple):
    """A network as a folder holds it: under a name, with its weights and what is said of it."""

    name: str
    network: nn.Module
    config: object


def _apart(network: nn.Module) -> dict[str, Tensor]:
    """Its weights, each in memory of its own: the format has no word for tied ones."""
    return {name: tensor.cpu().clone(memory_format=torch.contiguous_format) for name, tensor in network.state_dict().items()}


def _part(network: nn.Module, role: str) -> SavedPart:
    if isinstance(network, Denoiser):
        return SavedPart("unet", network.unet, network.config)
    if isinstance(network, Classifier):
        return SavedPart("guide", network, network.config)
    if isinstance(network, OwnDenoiser | OwnGuide):
        return SavedPart(f"own_{role}", network.module, network.config)
    wanted = "an OwnDenoiser or a Denoiser" if role == "denoiser" else "an OwnGuide or a Classifier"
    raise TypeError(f"{role} must be {wanted} to be saved, got {type(network).__name__}")
