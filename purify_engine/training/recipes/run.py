"""A recipe followed: its networks trained, its purifier assembled and calibrated, and cards that say by what."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from purify_engine.config import PurifierConfig, UNetConfig, require, to_dict
from purify_engine.files import write_whole
from purify_engine.folders import add_to_config
from purify_engine.training import assembly, cards
from purify_engine.training.batches import check_training_set
from purify_engine.training.classifier import LabelledImages, train_classifier
from purify_engine.training.diffusion import train_diffusion
from purify_engine.training.processes import join
from purify_engine.training.progress import Progress, silent
from purify_engine.training.recipes.recipe import Part, Recipe
from purify_engine.training.trades import train_trades
from purify_engine.types import Images, Labels


@dataclass(frozen=True, kw_only=True)
class Examples:
    """What a recipe is followed on."""

    images: Images
    """To train on, float [N, C, H, W] in [0, 1], on the device that trains."""
    labels: Labels
    """int64 [N]."""
    held_out: LabelledImages | None = None
    """Measured, never trained on."""
    said: str = ""
    """The cards' sentences about them."""


@dataclass
class Followed:
    """What came of a recipe."""

    kept: list[str] = field(default_factory=list)
    """Parts that were finished before."""
    purifiers: dict[Path, PurifierConfig] = field(default_factory=dict)
    """Folders that are purifiers now, and how they purify."""


def train_recipe(
    recipe: Recipe,
    data: Examples,
    out_dir: Path,
    *,
    parts: Sequence[str] = (),
    seconds: float | None = None,
    resume: bool = False,
    replace: bool = False,
    command: str = "",
    progress: Progress = silent,
) -> Followed:
    """Train `parts` of a recipe (all by default) into `out_dir`, and make purifiers of what is there then.

    A purifier, its presets and its card stand in `out_dir` once its diffusion model does; a further guide has a folder of its own
    in it. seconds: of wall-clock time for the parts that are asked for, by their shares, in all runs together. resume: go on from
    checkpoints, and keep what is finished by the same training. replace: train again. command: as the cards name it. ValueError,
    in one line and before anything is trained, where data do not fit, or something finished would be trained over.
    """
    wanted = chosen(recipe, parts)
    whole = sum(recipe.parts[name].share for name in wanted)
    for name in wanted:
        _check(recipe.parts[name], data)
        assembly.require_room(home(out_dir, name), recipe.parts[name].kind, resume=resume, replace=replace)
    result = Followed()
    for name in wanted:
        part, folder = recipe.parts[name], home(out_dir, name)
        assembly.require_fitting(folder, part.kind, part.network, part.training, recipe.classes)
        if resume and not replace and _is_kept(part, data, folder):
            result.kept.append(name)
        else:
            budget = None if seconds is None else seconds * part.share / whole
            _train(part, recipe.classes, data, folder, seconds=budget, resume=resume, progress=progress)
            if join().is_first:
                cards.say_made(folder, part.kind, cards.Made(recipe=recipe.name, command=command))
    if not join().is_first:  # of torchrun's processes one makes the purifier
        return result
    for folder in dict.fromkeys(home(out_dir, name) for name in recipe.parts):
        config = _assembled(recipe, data, out_dir, folder)
        if config is not None:
            result.purifiers[folder] = config
    return result


def chosen(recipe: Recipe, parts: Sequence[str]) -> list[str]:
    """The parts that are asked for, in the recipe's order; ValueError for one that it does not have."""
    for name in parts:
        require(name in recipe.parts, "part", f"one of {', '.join(recipe.parts)} of the recipe {recipe.name}", name)
    return [name for name in recipe.parts if not parts or name in parts]


def home(out_dir: Path, name: str) -> Path:
    """The folder of a part."""
    return out_dir if name in assembly.PARTS else out_dir / name


def _check(part: Part, data: Examples) -> None:
    """Every label is looked at before the first network is trained for hours."""
    classes = None if isinstance(part.network, UNetConfig) else part.network.num_classes
    for images, labels in ((data.images, data.labels), *([data.held_out] if data.held_out else [])):
        check_training_set(images, labels, part.network.in_channels, classes)
    side = part.network.image_size if isinstance(part.network, UNetConfig) else data.images.shape[-1]
    shape = tuple(data.images.shape[-2:])
    require(shape == (side, side), "images", f"of {side}x{side} pixels, as the recipe's diffusion model takes", shape)


def _is_kept(part: Part, data: Examples, folder: Path) -> bool:
    if not assembly.is_finished(folder, part.kind):
        return False
    labels = None if part.kind == "unet" else data.labels
    assembly.require_same(folder, part.kind, part.network, part.training, data.images, labels)
    return True


def _train(part: Part, classes: tuple[str, ...], data: Examples, folder: Path, **how: Any) -> None:
    how["data"] = data.said
    if part.kind == "unet":
        held_out = data.held_out[0] if data.held_out else None
        train_diffusion(data.images, part.network, part.training, folder, held_out=held_out, **how)  # type: ignore[arg-type]
        return
    train: Any = train_trades if part.kind == "guide" else train_classifier
    train(data.images, data.labels, part.network, part.training, folder, held_out=data.held_out, class_names=classes, **how)


def _assembled(recipe: Recipe, data: Examples, out_dir: Path, folder: Path) -> PurifierConfig | None:
    """Make `folder` a purifier, where it has all that it takes: the recipe's guide, and the diffusion model of `out_dir`."""
    has_all = assembly.is_finished(folder, "guide") and assembly.is_finished(out_dir, "unet")
    if not has_all:
        return None
    if folder != out_dir:
        _bring_unet(out_dir, folder)
    presets = {name: {"about": preset.about, "t_star": preset.t_star, "num_steps": preset.num_steps}
               for name, preset in recipe.presets.items()}  # fmt: skip
    images = calibration_images(data, recipe.assembly.calibration_images)
    return assembly.assemble(folder, images, recipe.assembly, data.said, presets)


def calibration_images(data: Examples, count: int) -> Images:
    """The first training images; where those are sorted by class, as many of each class as of any other."""
    return data.images[torch.tensor(rows_of_all_classes(data.labels, count, last=False), device=data.images.device)]


def rows_of_all_classes(labels: Labels, count: int, *, last: bool) -> list[int]:
    """`count` rows, the last or the first ones; evenly spaced ones where labels are sorted, as those of class folders are."""
    total = len(labels)
    count = min(count, total)
    if total > 1 and bool((labels.diff() >= 0).all()) and bool(labels[0] != labels[-1]):
        return [(2 * place + 1) * total // (2 * count) for place in range(count)]
    return list(range(total - count, total) if last else range(count))


def _bring_unet(out_dir: Path, folder: Path) -> None:
    """A copy of the diffusion model and what is said of it, so that the folder is a purifier's by itself."""
    there = assembly.contents(out_dir)
    source = out_dir / "unet.safetensors"
    write_whole(folder / source.name, lambda temporary: shutil.copyfile(source, temporary))
    unet = assembly.network_of(there, "unet")
    add_to_config(folder, unet=to_dict(unet), training={"unet": there["training"]["unet"]})
