"""`purify-engine train recipe`: from a recipe and a data set to a purifier's folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from purify_engine.cli.labelled import DIGITS, Labelled, labelled
from purify_engine.cli.training import Job
from purify_engine.config import UNetConfig, require, to_dict
from purify_engine.folders import differing_classes
from purify_engine.training.recipes import Recipe

if TYPE_CHECKING:
    from purify_engine.training.recipes.run import Examples


def follow(job: Job, recipe: Recipe, parts: list[str], command: str) -> None:
    """Do it, and tell what came of it."""
    from purify_engine.training import assembly
    from purify_engine.training.recipes.run import chosen, home, train_recipe

    for name in chosen(recipe, parts):  # before anything is read
        folder, kind = home(job.output, name), recipe.parts[name].kind
        assembly.require_room(folder, kind, resume=job.resume, replace=job.replace)
    how: dict[str, Any] = {"seconds": job.seconds, "resume": job.resume, "replace": job.replace, "command": command}
    done = train_recipe(recipe, _examples(job, recipe), job.output, parts=parts, progress=job.told, **how)
    for name in done.kept:
        job.told.notes.append(f"{name}: {home(job.output, name)} holds it finished, and it is kept")
    job.told.about |= {"kept": done.kept} if done.kept else {}
    for folder, config in done.purifiers.items():
        named = f" and as its presets {', '.join(recipe.presets)}" if recipe.presets else ""
        job.told.notes.append(f"{folder} is a purifier: t_star {config.t_star}, {config.num_steps} steps,{named} have it")
        job.told.about.setdefault("purifiers", []).append({"folder": str(folder), "config": to_dict(config)})
    if not done.purifiers:
        job.told.notes.append(f"{job.output} is no purifier yet: it takes the recipe's unet and guide")


def _examples(job: Job, recipe: Recipe) -> Examples:
    """The training images, and those that are held out of them."""
    from purify_engine.devices import torch_device
    from purify_engine.training.recipes.run import Examples, rows_of_all_classes

    where = torch_device(job.device)  # a device that is refused is refused before anything is read
    data = _labelled(job.source, recipe, "train")
    labels, count = data.required_labels(), recipe.validation
    if count == 0:
        tested = _labelled(job.source, recipe, "test")
        held_out = tested.images.to(where), tested.required_labels().to(where)
        return Examples(images=data.images.to(where), labels=labels.to(where), held_out=held_out, said=recipe.data)
    enough = f"more than {count:,} labelled images, of which {count:,} are held out"
    require(data.count > count, "data", enough, f"{data.count} in {job.source}")
    rows = rows_of_all_classes(labels, count, last=True)
    is_last = rows[0] == data.count - count
    kept = slice(0, rows[0]) if is_last else sorted({*range(data.count)} - {*rows})
    which = f"the last {count:,}" if is_last else f"{count:,} spread over all classes"
    said = (
        f"{recipe.data} Read from {Path(job.source).name}. Of its {data.count:,} images {which} are a validation set: measured, "
    )
    images, labels = data.images.to(where), labels.to(where)
    held_out = images[rows], labels[rows]
    return Examples(images=images[kept], labels=labels[kept], held_out=held_out, said=f"{said}never trained on.")


def _labelled(source: str, recipe: Recipe, split: str) -> Labelled:
    """The data set, of the recipe's images and classes."""
    from purify_engine.data import ImageShape

    unet = recipe.parts["unet"].network
    assert isinstance(unet, UNetConfig)
    require((source == DIGITS) == (recipe.name == DIGITS), "data", f"what the recipe {recipe.name} is for: {recipe.data}", source)
    data = labelled(source, ImageShape(unet.in_channels, unet.image_size), split=split)  # type: ignore[arg-type]
    same = data.classes in (None, recipe.classes)
    differ = differing_classes(recipe.classes, data.classes or ())
    require(same, "data", f"of the classes of the recipe {recipe.name}; {differ}", data.classes and data.classes[:5])
    return data
