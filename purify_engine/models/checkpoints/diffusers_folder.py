"""A diffusers folder, or diffusers' objects in memory, as our network, its weights, its noise schedule, and how it samples.

diffusers itself is never imported: of an object its `.config`, its `.state_dict()` and the name of its class are read.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from purify_engine.config import OwnPrediction, ScheduleConfig, UNetConfig, require
from purify_engine.models.checkpoints.diffusers import SCHEDULER, layout_of
from purify_engine.models.checkpoints.diffusers_scheduler import Scheduler, read_scheduler
from purify_engine.models.checkpoints.diffusers_unet import image_side, unet_config
from purify_engine.models.checkpoints.layout import shapes_of, translate
from purify_engine.models.checkpoints.network import read_unet
from purify_engine.models.checkpoints.reading import opened
from purify_engine.models.denoiser import Denoiser
from purify_engine.models.own import OwnDenoiser
from purify_engine.models.unet import UNet


class DiffusersModel(NamedTuple):
    """What diffusers' network and scheduler are to us.

    found = from_diffusers(pipeline, num_steps=250, t_star=150)
    purifier = GuidedPurifier(found.denoiser(), guide, PurifierConfig(**found.sampling))
    """

    config: UNetConfig
    weights: dict[str, Tensor]  # the state_dict of UNet(config)
    schedule: ScheduleConfig | None  # None where no scheduler lies beside the network
    sampling: dict[str, Any]  # fields of PurifierConfig, the schedule among them; empty without a scheduler

    def denoiser(self) -> Denoiser:
        """The network, in the dtype of the weights, with copies of them."""
        with torch.device("meta"):
            unet = UNet(self.config)
        unet.load_state_dict({name: weight.clone() for name, weight in self.weights.items()}, assign=True)
        return Denoiser(unet)


def load_diffusers_folder(
    path: str | os.PathLike[str],
    *,
    num_steps: int | None = None,
    t_star: int | None = None,
    image_size: int | None = None,
) -> DiffusersModel:
    """What `save_pretrained` wrote: a network's folder, or a pipeline's, in which they are `unet/` and `scheduler/`.

    num_steps, t_star: as in `Scheduler.sampling`. image_size: pixels a side, where config.json has no sample_size.
    FileNotFoundError or ValueError, in one line, where the folder is no unconditional UNet2DModel that we can run.
    """
    folder = Path(path)
    for part in ("vae", "vqvae", "text_encoder"):
        require(not (folder / part).is_dir(), "a diffusers folder", "of a model of images, not of latents or text", part)
    held = opened(folder)
    said = held.beside.get(SCHEDULER)
    found = None if said is None else read_scheduler(said)
    network = read_unet(held, given={} if image_size is None else {"image_size": image_size})
    assert isinstance(network.config, UNetConfig)
    return _with_sampling(network.config, network.weights, found, num_steps, t_star)


def from_diffusers(
    unet: Any,
    scheduler: Any = None,
    *,
    num_steps: int | None = None,
    t_star: int | None = None,
    image_size: int | None = None,
) -> DiffusersModel:
    """What diffusers' network and scheduler are to us: `.denoiser()`, and the fields of `PurifierConfig` in `.sampling`.

    unet: a folder that `save_pretrained` wrote, a pipeline, or a `UNet2DModel`. scheduler: beside a `UNet2DModel`, its DDPM or
    DDIM scheduler; None leaves `.sampling` empty. num_steps: as `set_timesteps` is told, over all timesteps; None: each of them.
    t_star: where to begin among them; None: at the first. image_size: pixels a side, where the network does not say.
    Raises FileNotFoundError or ValueError, in one line, where it is no unconditional UNet2DModel that we can run.
    """
    if isinstance(unet, str | os.PathLike):
        return load_diffusers_folder(unet, num_steps=num_steps, t_star=t_star, image_size=image_size)
    unet, scheduler = _parts(unet, scheduler)
    config, tensors = unet_config(_said(unet), image_size), unet.state_dict()
    found = None if scheduler is None else read_scheduler(_said(scheduler))
    with torch.device("meta"):
        wanted = shapes_of(UNet(config).state_dict())
    weights = translate(layout_of(shapes_of(tensors)), config, tensors, wanted, "the network")
    return _with_sampling(config, weights, found, num_steps, t_star)


def as_it_is(
    unet: Any, scheduler: Any = None, *, num_steps: int | None = None, t_star: int | None = None
) -> tuple[OwnDenoiser, dict[str, Any]]:
    """A `UNet2DModel` in memory that our U-Net cannot be, asked as it is; and fields of `PurifierConfig` as in `from_diffusers`.

    ValueError, in one line, where it needs a class, too, or is told sigma in place of a timestep.
    """
    unet, scheduler = _parts(unet, scheduler)
    said, found = _said(unet), None if scheduler is None else read_scheduler(_said(scheduler))
    kinds = [kind.__name__ for kind in type(unet).__mro__]
    others = "a UNet2DModel or a pipeline with one (for any other network: OwnDenoiser)"
    require("UNet2DModel" in kinds, "unet", others, type(unet).__name__)
    for key in ("class_embed_type", "num_class_embeds"):
        require(said.get(key) is None, key, "None: a purifier knows no class to tell the network", said.get(key))
    time = said.get("time_embedding_type", "positional")
    require(time != "fourier", "time_embedding_type", "positional or learned: a fourier network is told sigma", time)
    channels, out_channels = said["in_channels"], said["out_channels"]
    require(out_channels in (channels, 2 * channels), "out_channels", f"{channels} or {2 * channels}", out_channels)
    denoiser = OwnDenoiser(
        unet,
        image_size=image_side(said["sample_size"]),
        in_channels=channels,
        num_halvings=len(said["block_out_channels"]) - 1,
        predicts="eps" if found is None else cast(OwnPrediction, found.prediction),
        learned_variance=out_channels != channels,
    )
    return denoiser, {} if found is None else found.sampling(num_steps, t_star)


def _parts(unet: Any, scheduler: Any) -> tuple[Any, Any]:
    """(unet, scheduler) of a pipeline, or as they are given."""
    for argument, given in (("unet", unet), ("scheduler", scheduler)):
        require(not isinstance(given, type), argument, "an instance in place of its class", given)
    for part in ("vae", "vqvae", "text_encoder"):
        require(getattr(unet, part, None) is None, "unet", "a pipeline of images, not of latents or text", f"one with {part}")
    if hasattr(unet, "unet"):
        unet, scheduler = unet.unet, unet.scheduler if scheduler is None else scheduler
    require(hasattr(unet, "config"), "unet", "diffusers' UNet2DModel, a pipeline with one, or a folder", type(unet).__name__)
    return unet, scheduler


def _said(thing: Any) -> dict[str, Any]:
    return {**thing.config, "_class_name": type(thing).__name__}


def _with_sampling(
    config: UNetConfig, weights: dict[str, Tensor], found: Scheduler | None, num_steps: int | None, t_star: int | None
) -> DiffusersModel:
    if found is None:
        return DiffusersModel(config, weights, None, {})
    is_noise = found.prediction == "eps" or not config.learned_variance
    require(is_noise, "prediction_type", "epsilon, where out_channels is twice in_channels", found.said["prediction_type"])
    config = replace(config, prediction=found.prediction)
    return DiffusersModel(config, weights, found.schedule, found.sampling(num_steps, t_star))
