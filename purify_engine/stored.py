"""Where a purifier comes from and where it is kept: the constructors of `GuidedPurifier`, and its folder."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import nn

from purify_engine import conversion, devices, presets, saving
from purify_engine.config import Precision, PurifierConfig
from purify_engine.conversion import Stated
from purify_engine.models.classifiers import Classifier
from purify_engine.models.own import AnyDenoiser, AnyGuide, DenoisingNetwork, GuideNetwork

PurifierT = TypeVar("PurifierT", bound="StoredPurifier")


class StoredPurifier(nn.Module):
    """A denoiser, a guide where there is one, and how to purify with them."""

    config: PurifierConfig

    def __init__(self, denoiser: DenoisingNetwork, guide: GuideNetwork | None, config: PurifierConfig) -> None:
        super().__init__()
        self.denoiser = cast(AnyDenoiser, denoiser)
        self.guide = cast("AnyGuide | None", guide)
        self.config = config

    @classmethod
    @torch.inference_mode(False)
    def from_pretrained(
        cls: type[PurifierT],
        name_or_path: str | Path,
        *,
        revision: str | None = None,
        preset: str | None = None,
        layout: str | None = None,
        device: str | torch.device = "cpu",
        precision: Precision = "auto",
        dtype: torch.dtype | None = None,
        denoiser: nn.Module | None = None,
        guide: nn.Module | None = None,
    ) -> PurifierT:
        """A purifier by embedded name (`list_purifiers()`), folder, published checkpoint, or Hub id (needs the `hub` extra).

        revision: of a Hub id, a branch, tag or commit; None is its main branch. preset: how to purify, in place of what is saved:
        one of the folder's own ("fast"), or a paper's (config/presets.py). layout: of a checkpoint whose names fit several.
        device: where its networks go; "auto" is a GPU where there is one. precision: "float32", "bf16", "fp16"; "auto" is bf16 on
        GPUs that have it, float32 elsewhere (docs/performance.md). dtype: of the networks, in place of `precision`;
        torch.float64 too. denoiser, guide: of a folder whose networks are not ours, the modules that its weights are loaded into
        (docs/own_networks.md).
        Raises FileNotFoundError where there is nothing of that name, ValueError where a file or an argument is wrong.
        """
        handed, asked = presets.Handed(denoiser, guide), devices.asked_for(precision, dtype)
        parts = presets.load_networks(name_or_path, preset, Stated(layout=layout), device, asked, revision, handed)
        unguided = presets.nothing_guides(preset, parts.config)
        if unguided:
            warnings.warn(unguided, stacklevel=3)  # the caller stands behind the decorator
        return cls(*parts)

    @classmethod
    @torch.inference_mode(False)
    def from_checkpoint(
        cls: type[PurifierT],
        unet: str | Path,
        guide: str | Path | AnyGuide | None = None,
        *,
        preset: str | None = None,
        layout: str | None = None,
        network: Mapping[str, Any] | None = None,
        device: str | torch.device = "cpu",
        precision: Precision = "auto",
        dtype: torch.dtype | None = None,
        **changes: Any,
    ) -> PurifierT:
        """A purifier from published files: the diffusion model's, and where guidance needs one the guide's.

        preset: "diffpure-cifar10-linf", ... (config/presets.py); by default the first that was published for this network.
        network: fields of `UNetConfig` that weights cannot tell (`{"image_size": 64}`). layout, device, precision, dtype: as in
        `from_pretrained`. changes: fields of `PurifierConfig`.
        Raises ValueError, in one line, where a file is no checkpoint that is known (docs/migration.md lists the layouts).
        """
        stated, asked = Stated(layout=layout, unet=network or {}), devices.asked_for(precision, dtype)
        return cls(*presets.load_parts(unet, guide, changes, preset, stated, device, asked))

    @classmethod
    def from_diffusers(
        cls: type[PurifierT],
        unet: Any,
        scheduler: Any = None,
        guide: AnyGuide | None = None,
        *,
        num_steps: int | None = None,
        t_star: int | None = None,
        **changes: Any,
    ) -> PurifierT:
        """A purifier from diffusers' objects in memory: a pipeline, or a `UNet2DModel` and its DDPM or DDIM scheduler.

        num_steps: as `set_timesteps` is told; None: every timestep. t_star: purify from the first timestep below it. changes:
        fields of `PurifierConfig`. A network that ours can be is copied into one; any other runs as it is, frozen
        (docs/own_networks.md). ValueError, in one line, where the network needs a class, too, or its scheduler is one of others.
        """
        denoiser, config = conversion.of_diffusers(unet, scheduler, num_steps, t_star, changes)
        return cls(denoiser, guide, config)

    def save_pretrained(self, folder: str | Path, classifier: Classifier | None = None) -> None:
        """Write `config.json` and the weights as safetensors, for `from_pretrained`, and `classifier` for `load_classifier`.

        folder: made where it is not there; files of these names in it are replaced, each whole or not at all. OSError where the
        disk is full.
        """
        saving.save_networks(Path(folder), self.denoiser, self.guide, self.config, classifier)
