"""Where purifiers come from: shipped inside the package, a folder, a published checkpoint, or the Hugging Face Hub.

`folders.py` says what a folder holds; a checkpoint of others is converted into one, kept in a cache (`cache.py`).
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn

from purify_engine import devices
from purify_engine.cache import cached
from purify_engine.config import (
    PRESETS,
    ClassifierConfig,
    OwnDenoiserConfig,
    OwnGuideConfig,
    Precision,
    PurifierConfig,
    UNetConfig,
    from_dict,
    require,
)
from purify_engine.conversion import AS_IT_IS, Stated, load_unet, preset_config
from purify_engine.folders import EMBEDDED, class_names, own_presets, read_config
from purify_engine.models.checkpoints import built_from_safetensors, load_safetensors
from purify_engine.models.checkpoints.reading import is_published
from purify_engine.models.classifiers import Classifier
from purify_engine.models.denoiser import Denoiser
from purify_engine.models.own import AnyDenoiser, AnyGuide, OwnDenoiser, OwnGuide
from purify_engine.models.unet import UNet


class Parts(NamedTuple):
    """What a `GuidedPurifier` is made of: the diffusion model, the guide (None where there is none), the configuration."""

    denoiser: AnyDenoiser
    guide: AnyGuide | None
    config: PurifierConfig


class Handed(NamedTuple):
    """Modules that a user hands in for the weights of a folder whose networks are not ours."""

    denoiser: nn.Module | None = None
    guide: nn.Module | None = None


NOTHING = Handed()
AdapterT = TypeVar("AdapterT", OwnDenoiser, OwnGuide)

FILES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".pkl")  # of checkpoints; no Hub id ends so


def list_purifiers() -> list[str]:
    """Names of the purifiers that work offline, straight after installation."""
    return sorted(folder.name for folder in EMBEDDED.iterdir() if (folder / "config.json").is_file())


def load_networks(
    name_or_path: str | Path,
    preset: str | None = None,
    stated: Stated = AS_IT_IS,
    device: str | torch.device = "cpu",
    precision: Precision | torch.dtype = "float32",
    revision: str | None = None,
    handed: Handed = NOTHING,
) -> Parts:
    """The networks and the configuration of a purifier that `resolve` finds, on `device` in `precision` (devices.py).

    preset: how to purify, in place of what is saved: of the folder's own, or a paper's (config/presets.py). handed: what the
    weights of other networks than ours are loaded into; ValueError where they lack, or the folder's networks are ours.
    """
    where = devices.torch_device(device)  # refused before anything is loaded
    folder = resolve(name_or_path, stated, revision)
    config = read_config(folder)
    denoiser = _denoiser(folder, config, handed.denoiser, devices.dtype_on(where, precision))
    guide = _guide(folder, config, handed.guide)
    return _placed(denoiser, guide, _how(folder, config, preset), where, precision)


def presets_of(name_or_path: str | Path, stated: Stated = AS_IT_IS, revision: str | None = None) -> dict[str, PurifierConfig]:
    """The ways to purify that a purifier's own folder names ("faithful", "fast", ...); none where it names none."""
    folder = resolve(name_or_path, stated, revision)
    return {name: preset.config for name, preset in own_presets(read_config(folder), folder).items()}


def _how(folder: Path, config: Mapping[str, Any], preset: str | None) -> PurifierConfig:
    """As saved, or as a preset of the folder or of a paper has it; presets that are not asked for are read, too."""
    saved, own = from_dict(PurifierConfig, config["purifier"]), own_presets(config, folder)
    if preset is None:
        return saved
    return own[preset].config if preset in own else preset_config(preset, saved.schedule, tuple(own))


def load_parts(
    unet: str | Path,
    guide: str | Path | AnyGuide | None,
    changes: Mapping[str, Any],
    preset: str | None = None,
    stated: Stated = AS_IT_IS,
    device: str | torch.device = "cpu",
    precision: Precision | torch.dtype = "float32",
) -> Parts:
    """The same from published files, without a cache; `guide` as `load_classifier` takes it, `changes` of the configuration."""
    where = devices.torch_device(device)
    denoiser, config = load_unet(Path(unet), preset, stated, devices.dtype_on(where, precision))
    network = load_classifier(guide) if isinstance(guide, str | Path) else guide
    how = dataclasses.replace(config, **changes)
    unguided = nothing_guides(preset, how)
    if unguided:
        warnings.warn(unguided, stacklevel=3)
    return _placed(denoiser, network, how, where, precision)


def nothing_guides(preset: str | None, how: PurifierConfig) -> str | None:
    """What is to be done before a preset that its paper gives no scale guides as the paper's does; None where nothing is."""
    paper = PRESETS.get(preset or "")
    ratio = None if paper is None else paper.calibrate_to
    if ratio is None or how.guidance.scale > 0:
        return None
    found = f"purifier.calibrate(training_images, {ratio:g})"
    return f"{preset} has no published scale: nothing guides until guidance.scale is {found}"


def _placed(
    denoiser: AnyDenoiser,
    guide: AnyGuide | None,
    config: PurifierConfig,
    device: torch.device,
    precision: Precision | torch.dtype,
) -> Parts:
    placed = None if guide is None else devices.place(guide, device, precision)
    return Parts(devices.place(denoiser, device, precision), placed, config)


def load_classifier(
    name_or_path: str | Path,
    *,
    layout: str | None = None,
    revision: str | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    **fields: Any,
) -> Classifier:
    """Something to defend, frozen, in evaluation mode: the classifier beside a purifier, or one in a published checkpoint.

    name_or_path: an embedded name (`list_purifiers()`), a folder, a published checkpoint, or a Hub id "owner/name". layout,
    fields: of a published one, where the weights cannot tell them (`mean=(0.5, 0.5, 0.5)`). revision: of a Hub id, a branch, tag
    or commit; None is its main branch. device: where it goes; "auto" is a GPU where there is one. dtype: of its parameters; None
    is float32.
    Raises FileNotFoundError where there is nothing of that name, ValueError where it is no classifier, or an argument is wrong.
    """
    where, precision = devices.torch_device(device), devices.asked_for(dtype=dtype or torch.float32)
    folder = resolve(name_or_path, Stated(layout=layout, classifier=fields), revision)
    config = read_config(folder, needed=())
    wanted = "a purifier with a classifier beside it, or a classifier (evaluate: --classifier FILE)"
    require("classifier" in config, "name_or_path", wanted, str(name_or_path))
    return devices.place(_classifier(folder, "classifier", config), where, precision)


def resolve(name_or_path: str | Path, stated: Stated = AS_IT_IS, revision: str | None = None) -> Path:
    """The folder of an embedded name, of a path, or of a Hub id ("owner/name", downloaded by `huggingface_hub`).

    A published checkpoint, a file or a diffusers folder, is converted into the cache; `stated` says what its weights cannot.
    revision: of a Hub id, the branch, tag or commit; None is its main branch. ValueError where what is named lies here.
    """
    path = Path(name_or_path)
    embedded = EMBEDDED / str(name_or_path)
    is_embedded = (embedded / "config.json").is_file()
    unversioned = "None for an embedded name, a folder or a file: only a Hub id (owner/name) has revisions"
    require(revision is None or not (is_embedded or path.exists()), "revision", unversioned, revision)
    if not is_embedded and (path.is_file() or is_published(path)):
        return cached(path, stated)
    if is_embedded or path.is_dir():
        return _ours(embedded if is_embedded else path, stated)
    is_file_name = path.suffix in FILES or str(name_or_path).startswith((".", "~"))  # a mistyped path is no Hub id
    if str(name_or_path).count("/") == 1 and not path.is_absolute() and not is_file_name:
        found = _from_hub(str(name_or_path), revision)
        return cached(found, stated) if is_published(Path(found)) else _ours(found, stated)
    known = ", ".join(list_purifiers())
    raise FileNotFoundError(
        f"purifier must be an embedded name ({known}), a folder, or a Hub id owner/name, or a checkpoint's file, "
        f"got {str(name_or_path)!r}"
    )


def _ours(folder: Path, stated: Stated) -> Path:
    for argument, said in {"layout": stated.layout, **stated.classifier}.items():
        require(said is None, argument, f"left out: config.json of {folder} says it; published checkpoints alone need it", said)
    return folder


def _from_hub(repo_id: str, revision: str | None) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        hint = 'pip install "purify-engine[hub]" to load it from the Hugging Face Hub'
        raise FileNotFoundError(f"purifier {repo_id!r} is no file or folder here; {hint}") from error
    try:
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=["*.json", "*.safetensors"]))
    except OSError as error:
        if error.errno is not None:  # of this machine: a full disk, say
            raise
        named = f"{repo_id!r} at revision {revision!r}" if revision else repr(repo_id)
        said = next(iter(str(error).split("\n")))
        raise FileNotFoundError(f"purifier {named} cannot be had from the Hugging Face Hub: {said}") from error


def _denoiser(folder: Path, config: dict[str, Any], handed: nn.Module | None, dtype: torch.dtype) -> AnyDenoiser:
    said = config.get("own_denoiser")
    if said is None:
        _refuse_handed("denoiser", handed, folder)
        network = partial(UNet, from_dict(UNetConfig, config["unet"]))
        return Denoiser(built_from_safetensors(network, folder / "unet.safetensors", dtype))
    known = from_dict(OwnDenoiserConfig, said)
    module = _handed_in("denoiser", handed, folder, known.network)
    adapter = _as_saved("denoiser", module, known) if isinstance(module, OwnDenoiser) else OwnDenoiser.of(module, known)
    load_safetensors(adapter.module, folder / "own_denoiser.safetensors")
    return adapter


def _guide(folder: Path, config: dict[str, Any], handed: nn.Module | None) -> AnyGuide | None:
    said = config.get("own_guide")
    if said is None:
        _refuse_handed("guide", handed, folder)
        return _classifier(folder, "guide", config) if config.get("guide") else None
    known = from_dict(OwnGuideConfig, said)
    module = _handed_in("guide", handed, folder, known.network)
    adapter = _as_saved("guide", module, known) if isinstance(module, OwnGuide) else OwnGuide.of(module, known)
    load_safetensors(adapter.module, folder / "own_guide.safetensors")
    return adapter


def _handed_in(argument: str, handed: nn.Module | None, folder: Path, network: str) -> nn.Module:
    named = f"{str(network)[:80]!r}"  # as the folder says, which may be anybody's
    wanted = f"the {named} whose weights {folder} holds (its code is not stored): from_pretrained(..., {argument}=module)"
    if handed is None:
        raise ValueError(f"{argument} must be {wanted}, got None")
    if not isinstance(handed, nn.Module):
        raise TypeError(f"{argument} must be {wanted}, got {type(handed).__name__}")
    return handed


def _as_saved(argument: str, adapter: AdapterT, known: OwnDenoiserConfig | OwnGuideConfig) -> AdapterT:
    """The adapter that is handed in; ValueError where it says other things of its module than the folder."""
    for field in dataclasses.fields(known):
        said, saved = getattr(adapter.config, field.name), getattr(known, field.name)
        wanted = f"{saved!r}, as saved; the module without its adapter takes what the folder says"
        require(field.name == "network" or said == saved, f"{argument}'s {field.name}", wanted, said)
    return adapter


def _refuse_handed(argument: str, handed: nn.Module | None, folder: Path) -> None:
    left_out = f"left out, as {folder} holds no network that needs it"
    require(handed is None, argument, left_out, type(handed).__name__)


def _classifier(folder: Path, part: str, config: dict[str, Any]) -> Classifier:
    network = Classifier(from_dict(ClassifierConfig, config[part]))
    network.class_names = class_names(config, part, network.config.num_classes)
    return load_safetensors(network, folder / f"{part}.safetensors").eval().requires_grad_(False)
