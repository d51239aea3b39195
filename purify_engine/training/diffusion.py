"""The noise predictor: epsilon-prediction with L_simple (docs/math.md E20; Ho et al. 2020), saved as a moving average."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from purify_engine.config import DiffusionTraining, UNetConfig, require
from purify_engine.models import UNet
from purify_engine.reference.process import diffuse
from purify_engine.reference.schedules import NoiseSchedule, make_schedule
from purify_engine.training.batches import check_training_set, compact, pixels
from purify_engine.training.computing import fused_on
from purify_engine.training.finishing import Comparison, finish
from purify_engine.training.loop import Loop, averages_of, initialised
from purify_engine.training.model_card import ModelCard, count_parameters
from purify_engine.training.perturbation import in_pieces
from purify_engine.training.progress import Progress, silent
from purify_engine.training.rates import rate_at
from purify_engine.training.record import TrainingSet, remembered
from purify_engine.types import Images


def train_diffusion(
    images: Images,
    network: UNetConfig,
    config: DiffusionTraining,
    out_dir: Path,
    *,
    held_out: Images | None = None,
    data: str = "",
    seconds: float | None = None,
    resume: bool = False,
    progress: Progress = silent,
) -> UNet:
    """Train a U-Net on `images` ([N, C, H, W], float in [0, 1] or uint8), on their device; return it and write it to `out_dir`.

    Writes `unet.safetensors` and the card `unet.md`, and what both say into the folder's `config.json`; until then
    `unet.checkpoint`, which `resume=True` continues from.
    `held_out` images are measured only, to choose among averages of several lengths too. `data` is the card's sentence about the
    images. `seconds` of wall-clock time are what all runs together may take: the learning rate falls to its end within them.
    ValueError: images that do not fit. FloatingPointError: the loss diverged.
    """
    check_training_set(images, None, network.in_channels)
    learned = remembered(images, None, data)
    require(network.prediction == "eps", "prediction", "'eps' to be trained, as docs/math.md E20 says", network.prediction)
    schedule, t_max = make_schedule(config.schedule), config.t_max or config.schedule.num_timesteps
    model = cast(UNet, initialised(lambda: UNet(network), config.seed)).to(images.device)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=fused_on(model)
    )
    loop = Loop(
        name="unet",
        model=model,
        network=network,
        config=config,
        optimizer=optimizer,
        rate=partial(rate_at, config=config),
        draw=partial(draw_noise, t_max=t_max),
        loss=lambda x, _, *drawn: noise_prediction_loss(model, x, schedule, t_max, *drawn),
        out_dir=out_dir,
        data=learned,
        gradient_clip=config.gradient_clip,
        averages=averages_of(model, config),
        seconds=seconds,
    )
    loop.run(compact(images), None, resume=resume, progress=progress)
    return finish(
        loop,
        _comparison(held_out, schedule, t_max),
        lambda model: _figures(model, {"training": images, "held-out": held_out}, schedule, t_max),
        lambda figures: _card(model, network, config, figures, learned),
        progress,
    )


def _comparison(held_out: Images | None, schedule: NoiseSchedule, t_max: int) -> Comparison[UNet] | None:
    """Averages of a U-Net are compared by their error of denoising, averaged over the timesteps that its card shows."""
    if held_out is None:
        return None
    images, indices = pixels(held_out[:1000]), _quarters(t_max)

    def error(model: UNet) -> float:
        return sum(denoising_error(model, images, schedule, index) for index in indices) / len(indices)

    return Comparison("mean RMSE of the denoised images", error, higher_is_better=False)


def draw_noise(images: Images, t_max: int) -> tuple[Tensor, Tensor]:
    """For each image a timestep, uniformly from [0, t_max), and noise."""
    return torch.randint(t_max, (len(images),), device=images.device), torch.randn_like(images)


def noise_prediction_loss(model: UNet, images: Images, schedule: NoiseSchedule, t_max: int, *drawn: Tensor) -> Tensor:
    """L_simple over timesteps of [0, t_max): mean squared error of the predicted noise; `drawn` by `draw_noise`, or else here."""
    index, noise = drawn or draw_noise(images, t_max)
    x_t, predicted = _predict_noise(model, images, noise, index, schedule)
    return (predicted - noise).square().mean()


def denoising_error(model: UNet, images: Images, schedule: NoiseSchedule, index: int, seed: int = 0) -> float:
    """Root mean square error, in [0, 1] units, of the one-shot estimate of `images` from their noising to `index`."""
    generator = torch.Generator(images.device).manual_seed(seed)
    noise = torch.randn(images.shape, generator=generator, device=images.device, dtype=images.dtype)
    indices = torch.full((len(images),), index, device=images.device)
    alpha_bar, squares = float(schedule.alphas_cumprod[index]), list[Tensor]()
    for rows in in_pieces(images):
        with torch.no_grad():
            x_t, predicted = _predict_noise(model, images[rows], noise[rows], indices[rows], schedule)
        estimate = (x_t - (1 - alpha_bar) ** 0.5 * predicted) / alpha_bar**0.5
        squares.append(((estimate + 1) / 2 - images[rows]).square())
    return float(torch.cat(squares).mean().sqrt())


def _predict_noise(model: UNet, images: Images, noise: Images, index: Tensor, schedule: NoiseSchedule) -> tuple[Images, Images]:
    alpha_bar = schedule.alphas_cumprod.to(images)[index].view(-1, 1, 1, 1)
    x_t = diffuse(2 * images - 1, noise, torch.stack([alpha_bar.sqrt(), (1 - alpha_bar).sqrt()]))
    predicted = model(x_t, schedule.times.to(images)[index])
    return x_t, predicted[:, : images.shape[1]]  # a learned variance, if any, is not trained here


def _figures(model: UNet, sets: dict[str, Images | None], schedule: NoiseSchedule, t_max: int) -> dict[str, float]:
    return {
        f"{name}: RMSE of the denoised image at timestep {index}": denoising_error(model, pixels(images[:1000]), schedule, index)
        for name, images in sets.items()
        if images is not None
        for index in _quarters(t_max)
    }


def _quarters(t_max: int) -> list[int]:
    """The last timestep of each quarter of those trained on."""
    return sorted({t_max * quarter // 4 - 1 for quarter in (1, 2, 3, 4)} - {-1})


def _card(
    model: UNet, network: UNetConfig, config: DiffusionTraining, figures: dict[str, float], data: TrainingSet
) -> ModelCard:
    t_max = config.t_max or config.schedule.num_timesteps
    return ModelCard(
        name="unet",
        title="Noise predictor (U-Net)",
        what="Predicts the noise in an image diffused to a timestep; the reverse process of the purifier is made of its calls.",
        data=data,
        parameters=count_parameters(model),
        network=network,
        config=config,
        figures=figures,
        use=f"Purifying images like those it was trained on, with t_star up to {t_max}. "
        "RMSE is that of one network call at that timestep, in [0, 1] units; a purifier takes several.",
        limits=f"It has seen timesteps 0 to {t_max - 1} only: it cannot generate from pure noise unless these are all of them. "
        "Images of another kind are pulled towards those of the training set. It is no defence by itself.",
    )
