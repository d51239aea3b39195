"""Published checkpoints into purifiers: on disk as a folder (`convert`), or in memory (`networks`).

Weights say what a network is, but not how it is to purify: that is a preset's, or what the user states.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from purify_engine.config import PRESETS, ClassifierConfig, PurifierConfig, ScheduleConfig, UNetConfig, one_of, require
from purify_engine.files import write_folder
from purify_engine.folders import write_config
from purify_engine.models import published as constants
from purify_engine.models.checkpoints.diffusers_folder import as_it_is, from_diffusers
from purify_engine.models.checkpoints.layout import Given
from purify_engine.models.checkpoints.network import Published, kind_of, read_classifier, read_unet, sha256
from purify_engine.models.checkpoints.reading import Opened, opened
from purify_engine.models.checkpoints.safetensors import write_tensors
from purify_engine.models.denoiser import Denoiser
from purify_engine.models.own import AnyDenoiser
from purify_engine.models.unet import UNet

LOGGER = logging.getLogger("purify_engine")

Stored = Literal["float32", "bf16"]
Part = Literal["unet", "guide", "classifier"]

STORED_DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "bf16": torch.bfloat16}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stated:
    """What a user says of networks because weights cannot tell it: the layout of the first file, and fields of configurations."""

    layout: str | None = None
    unet: Given = dataclasses.field(default_factory=dict)
    guide: Given = dataclasses.field(default_factory=dict)
    classifier: Given = dataclasses.field(default_factory=dict)


AS_IT_IS = Stated()


class Settings(NamedTuple):
    """How to purify, and the preset that it was taken from."""

    config: PurifierConfig
    preset: str | None


class Conversion(NamedTuple):
    """What became of the files: each network by its part, how to purify (None for a classifier alone), where each came from."""

    networks: dict[Part, Published]
    purification: Settings | None
    origin: dict[Part, dict[str, Any]]


def convert(
    source: Path,
    output: Path,
    *,
    guide: Path | None = None,
    classifier: Path | None = None,
    preset: str | None = None,
    stated: Stated = AS_IT_IS,
    precision: Stored = "float32",
    configured: Callable[[PurifierConfig], PurifierConfig] = lambda config: config,
) -> Conversion:
    """Write the folder `output` from published files, whole or not at all: a purifier's, or where `source` is a classifier, its.

    guide, classifier: files of those networks. preset: how to purify (config/presets.py). precision: of the stored weights.
    configured: from that configuration to the one that is written. ValueError where `output` holds something, or a file is no
    checkpoint that is known.
    """
    one_of("precision", precision, Stored)
    free = not output.exists() or (output.is_dir() and not any(output.iterdir()))
    require(free, "output", "a new or an empty folder", str(output))
    beside: dict[Part, Path | None] = {"guide": guide, "classifier": classifier}
    first = opened(source)
    files: dict[Part, Opened] = {kind_of(first, stated.layout): first}
    for part, path in beside.items():
        require(path is None or part not in files, part, f"left out where {source} is a classifier", str(path))
        if path is not None:
            files[part] = opened(path)
    networks = {part: read_part(part, held, stated, stated.layout if held is first else None) for part, held in files.items()}
    how = purifier_of(networks["unet"], preset) if "unet" in networks else None
    purification = how and how._replace(config=configured(how.config))
    _refuse_missing_guide(purification, networks)
    origin = {part: {**_origin(held), **_told(networks[part])} for part, held in files.items()}
    made = Conversion(networks, purification, origin)
    write_folder(output, lambda folder: write(folder, made, precision))
    return made


def read_part(part: Part, held: Opened, stated: Stated, layout: str | None = None) -> Published:
    """The network of an opened file, as the purifier's `part`; layout: of this file, None where it is to be recognised."""
    if part == "unet":
        return read_unet(held, given=stated.unet, layout=layout)
    given = stated.guide if part == "guide" else stated.classifier
    return read_classifier(held, given=given, layout=layout)


def purifier_of(unet: Published, preset: str | None = None) -> Settings:
    """How a network purifies: as `preset` has it; without one as what lies beside the network says, or as the first preset that
    was published for it, or by our defaults; always on the schedule that it was trained on."""
    if preset is None and not unet.sampling:
        preset = next((name for name, known in PRESETS.items() if _is_network(unet.config, known.unet)), None)
    if preset is not None:
        return Settings(preset_config(preset, unet.schedule), preset)
    return Settings(PurifierConfig(**{"schedule": unet.schedule, **_from_t_star(unet.sampling)}), None)


def preset_config(name: str, schedule: ScheduleConfig, own: Sequence[str] = ()) -> PurifierConfig:
    """A paper's configuration, for a network that was trained on `schedule`; ValueError where the preset needs another.

    own: names of presets that the purifier's folder has, which the error lists first.
    """
    papers = ", ".join(PRESETS)
    known = f"one of {', '.join(own)} (of this purifier) or {papers} (of papers)" if own else f"one of {papers}"
    require(name in PRESETS, "preset", known, name)
    config = PRESETS[name].config
    same = config.schedule == schedule
    trained = f"{schedule.num_timesteps} timesteps, {schedule.kind}"
    require(same, "preset", f"one for the noise that the network was trained on ({trained})", name)
    return config


def _is_network(config: UNetConfig | ClassifierConfig, name: str | None) -> bool:
    known = getattr(constants, name) if name else None
    return isinstance(config, UNetConfig) and known is not None and dataclasses.replace(known, dropout=config.dropout) == config


def _from_t_star(sampling: Given) -> Given:
    """How a scheduler samples an image from noise, begun at our t* for purification."""
    if "timesteps" not in sampling:
        return sampling
    kept = [place for place, stop in enumerate(sampling["timesteps"]) if stop < PurifierConfig().t_star]
    walked = {name: tuple(sampling[name][place] for place in kept) for name in ("timesteps", "landings") if name in sampling}
    return {**sampling, **walked, "t_star": walked["timesteps"][0] + 1}


def write(folder: Path, made: Conversion, precision: Stored) -> None:
    """Weights, then `config.json`, into `folder`."""
    for part, network in made.networks.items():
        weights = {name: _stored(tensor, STORED_DTYPES[precision]) for name, tensor in network.weights.items()}
        write_tensors(weights, folder / f"{part}.safetensors")
    configs: dict[str, Any] = {str(part): network.config for part, network in made.networks.items()}
    how, preset = made.purification or (None, None)
    write_config(folder, **configs, purifier=how, preset=preset, precision=precision, origin=made.origin)


def _refuse_missing_guide(how: Settings | None, networks: Mapping[Part, Published]) -> None:
    guided = how is not None and how.config.guidance.kind == "adversarial" and how.config.guidance.scale > 0
    require(not guided or "guide" in networks, "guide", "the checkpoint of one, as the guidance is adversarial", None)


def load_unet(
    source: Path, preset: str | None = None, stated: Stated = AS_IT_IS, dtype: torch.dtype = torch.float32
) -> tuple[Denoiser, PurifierConfig]:
    """The diffusion model of a published file, in `dtype`, and how it purifies (`purifier_of`); nothing is written."""
    found = read_part("unet", opened(source), stated, stated.layout)
    assert isinstance(found.config, UNetConfig)
    tell(f"{source.name} as unet", found.says)
    with torch.device("meta"):
        unet = UNet(found.config)
    weights = {name: tensor.to(dtype, copy=True) for name, tensor in found.weights.items()}  # the file may change later
    unet.load_state_dict(weights, assign=True)
    return Denoiser(unet), purifier_of(found, preset).config


def of_diffusers(
    unet: Any, scheduler: Any, num_steps: int | None, t_star: int | None, changes: Mapping[str, Any]
) -> tuple[AnyDenoiser, PurifierConfig]:
    """The network of diffusers' objects in memory, or of their folder, and how it purifies; `changes` are made to that.

    A `UNet2DModel` that our U-Net can be is converted, its weights copied. Any other is asked as it is (`OwnDenoiser`), and the
    log says so. ValueError, in one line, where it needs more than an image and a time, or nothing tells its noise schedule.
    """
    t_star = PurifierConfig().t_star if t_star is None else t_star
    try:
        found = from_diffusers(unet, scheduler, num_steps=num_steps, t_star=t_star)
        denoiser: AnyDenoiser = found.denoiser()
        sampling = found.sampling
    except ValueError as reason:
        if isinstance(unet, str | os.PathLike):
            raise
        denoiser, sampling = as_it_is(unet, scheduler, num_steps=num_steps, t_star=t_star)
        tell("unet, which runs as it is", [str(reason)])
    told = bool(sampling) or "schedule" in changes
    require(told, "scheduler", "the one that the network was trained with, or schedule=ScheduleConfig(...) in its place", None)
    return denoiser, PurifierConfig(**{**sampling, **changes})


def tell(what: str, says: Sequence[str]) -> None:
    """What was taken for granted where weights do not tell it, to the log: on stderr where no logging is set up."""
    for said in says:
        LOGGER.warning("%s: %s", what, said)


def _stored(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Floats in `dtype`, with memory of its own: safetensors refuses two tensors in one, as parts of a stacked one are."""
    tensor = tensor.to(dtype) if tensor.is_floating_point() else tensor
    whole = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes
    return tensor if whole else tensor.clone(memory_format=torch.contiguous_format)


def _origin(held: Opened) -> dict[str, Any]:
    file = held.files[0]
    return {"file": file.name, "bytes": file.stat().st_size, "sha256": sha256(file)}


def _told(found: Published) -> dict[str, Any]:
    return {"layout": found.layout, "says": list(found.says)}
