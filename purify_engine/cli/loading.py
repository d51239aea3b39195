"""From words on the command line to a purifier and to images."""

from __future__ import annotations

import dataclasses
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from purify_engine.cli.options import with_options
from purify_engine.config import PRESETS, UNIT_RANGE, Precision, PurifierConfig, UNetConfig, from_dict, require
from purify_engine.folders import EMBEDDED, own_presets, read_config

if TYPE_CHECKING:
    from purify_engine.data import ImageShape
    from purify_engine.purifier import GuidedPurifier


Device = Annotated[
    str, Parameter(help="Where to compute, in PyTorch's words: cpu, cuda, cuda:1; auto is a GPU where there is one, else cpu.")
]
NetworkPrecision = Annotated[
    Precision,
    Parameter(
        help="Of the networks; 16 bits are stored channels_last. auto: bf16 on GPUs of compute capability 8.0 or newer, float32 "
        "elsewhere. On CPUs 16 bits are slower, and halve the memory of weights."
    ),
]
PurifierName = Annotated[
    str,
    Parameter(
        help="An embedded name, a folder written by save_pretrained or convert, a published checkpoint (converted once, into a "
        "cache in ~/.cache/purify-engine), or a Hugging Face Hub id."
    ),
]
PresetName = Annotated[
    str | None,
    Parameter(
        help="How to purify, in place of what is saved; other options win. One of the purifier's own (`doctor` lists those of "
        f"embedded ones), or as a paper does: {', '.join(PRESETS)}."
    ),
]
LayoutName = Annotated[
    str | None, Parameter(help="Of a published checkpoint, where its names fit several or are to be checked against one.")
]
RevisionName = Annotated[
    str | None, Parameter(help="Of a Hugging Face Hub id: a branch, a tag, or a commit, which always gives the same weights.")
]


def load_purifier(
    name_or_path: str,
    options: Any = None,
    device: str = "auto",
    precision: Precision = "auto",
    *,
    preset: str | None = None,
    layout: str | None = None,
    revision: str | None = None,
) -> GuidedPurifier:
    """The purifier with the given options in place, on `device` in `precision`.

    layout: of a published checkpoint. revision: of a Hub id. It takes images in [0, 1], as files and attacks give them, whatever
    image_range was saved.
    """
    from purify_engine.conversion import Stated
    from purify_engine.presets import load_networks, nothing_guides
    from purify_engine.purifier import GuidedPurifier

    denoiser, guide, saved = load_networks(name_or_path, preset, Stated(layout=layout), device, precision, revision)
    config = dataclasses.replace(with_options(saved, options), image_range=UNIT_RANGE)
    if config.t_star > saved.t_star:
        deepest = (stored_training(name_or_path, layout, revision).get("unet") or {}).get("t_max")
        known = deepest is None or config.t_star <= deepest
        require(known, "t_star", f"at most {deepest}, the timesteps that the diffusion model was trained on", config.t_star)
    unguided = nothing_guides(preset, config)
    if unguided:
        print(f"purify-engine: {unguided}", file=sys.stderr)
    return GuidedPurifier(denoiser, guide, config)


class PurifierToLoad:
    """A purifier that is loaded where it is first needed: what is wrong elsewhere is said before PyTorch is imported."""

    def __init__(self, name_or_path: str, options: Any, *args: Any, preset: str | None, **stated: Any) -> None:
        self.name_or_path, self.options, self.preset = name_or_path, options, preset
        self.load = cache(lambda: load_purifier(name_or_path, options, *args, preset=preset, **stated))

    def image_shape(self) -> ImageShape:
        """Which images it takes; by its config.json alone where there is one. ValueError where options do not suit."""
        from purify_engine.data import ImageShape

        saved = self._saved()
        if saved is None:
            return image_shape(self.load())
        network, how = saved
        size = network.image_size if how.sizes == "exact" else None
        return ImageShape(network.in_channels, size, Refusal(self), clip=how.clip_input)

    def _saved(self) -> tuple[UNetConfig, PurifierConfig] | None:
        embedded = EMBEDDED / self.name_or_path / "config.json"
        path = embedded if embedded.is_file() else Path(self.name_or_path) / "config.json"
        if not path.is_file():
            return None
        if '"schema_version"' not in path.read_text(errors="replace"):  # another library's
            return None
        said = read_config(path.parent)
        own = own_presets(said, path.parent)
        if self.preset is not None and self.preset not in own:
            return None
        how = from_dict(PurifierConfig, said["purifier"]) if self.preset is None else own[self.preset].config
        return from_dict(UNetConfig, said["unet"]), with_options(how, self.options)


def stored_training(name_or_path: str, layout: str | None = None, revision: str | None = None) -> dict[str, Any]:
    """What the purifier's folder says of its networks' trainings, by network; nothing where they were not trained here."""
    from purify_engine.conversion import Stated
    from purify_engine.presets import resolve

    said = read_config(resolve(name_or_path, Stated(layout=layout), revision), needed=()).get("training", {})
    require(isinstance(said, dict), "training of config.json", "an object of networks", said)
    return said


class Refusal:
    """Why images of (height, width) are not taken, as the purifier says once it is loaded; its own method in other processes."""

    def __init__(self, to_load: PurifierToLoad) -> None:
        self.to_load = to_load

    def __call__(self, height: int, width: int) -> str | None:
        return self.to_load.load().bridge.refusal(height, width)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (self.to_load.load().bridge, "refusal")


def image_shape(purifier: GuidedPurifier) -> ImageShape:
    """Which images the purifier takes."""
    from purify_engine.data import ImageShape

    network = purifier.denoiser.config
    size = network.image_size if purifier.config.sizes == "exact" else None
    return ImageShape(network.in_channels, size, purifier.bridge.refusal, clip=purifier.config.clip_input)
