"""Trained networks in one folder become a purifier: what they must agree on, how deep it goes, how strongly its guide pulls."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from purify_engine.config import (
    Assembly,
    ClassifierConfig,
    DiffusionTraining,
    GuidanceConfig,
    PurifierConfig,
    TradesTraining,
    UNetConfig,
    from_dict,
    require,
    to_dict,
)
from purify_engine.folders import add_to_config, class_names, differing_classes, own_presets, read_config
from purify_engine.models import Classifier, Denoiser, UNet, load_safetensors
from purify_engine.purifier import GuidedPurifier
from purify_engine.training.cards import write_purifier_card
from purify_engine.training.record import remembered
from purify_engine.types import Images, Labels

PARTS = ("unet", "guide", "classifier")
DEEPEST = PurifierConfig().t_star  # where nothing says otherwise


def contents(folder: Path) -> dict[str, Any]:
    """What `config.json` in `folder` says of networks that were trained into it; nothing where it is not there."""
    return read_config(folder, needed=()) if (folder / "config.json").is_file() else {}


def network_of(there: dict[str, Any], part: str) -> Any:
    """The configuration of a network that `config.json` holds."""
    return from_dict(UNetConfig if part == "unet" else ClassifierConfig, there[part])


def require_room(folder: Path, part: str, *, resume: bool, replace: bool) -> None:
    """Refuse to train over weights that are finished, or over the checkpoint of an interrupted training."""
    weights, checkpoint = folder / f"{part}.safetensors", folder / f"{part}.checkpoint"
    if resume or replace:
        return
    untrained = f"a folder without {checkpoint.name} (--resume goes on from it, --replace begins again)"
    require(not checkpoint.exists(), "output", untrained, str(folder))
    require(not weights.exists(), "output", f"a folder without {weights.name} (--replace trains it again)", str(folder))


def is_finished(folder: Path, part: str) -> bool:
    """Whether this network was trained to its end: a checkpoint beside its weights is of a training that is to replace them."""
    return (folder / f"{part}.safetensors").exists() and not (folder / f"{part}.checkpoint").exists()


def require_same(folder: Path, part: str, network: Any, how: Any, images: Images, labels: Labels | None) -> None:
    """Refuse to take finished weights for those of a training that differs: in network, settings, images or labels."""
    there, data = contents(folder), remembered(images, labels, "")
    said, was = _training(there, part), there.get(part)
    learned = said.get("data", {})
    now = {**to_dict(network), **to_dict(how), "pixels": data.sha256, "labels": data.labels_sha256}
    unsaid = json.loads(json.dumps(to_dict(type(how)())))  # of fields that came later than the folder
    then = {**unsaid, **(was or {}), **said, "pixels": learned.get("sha256"), "labels": learned.get("labels_sha256")}
    plain = json.loads(json.dumps(now))
    changed = {name: (then.get(name), value) for name, value in plain.items() if then.get(name) != value}
    require(not changed, "resume", f"of the training that made {part}.safetensors (then, now), or --replace", changed)


def require_fitting(folder: Path, part: str, network: Any, how: Any, names: tuple[str, ...] | None = None) -> None:
    """Refuse a network that could not be one purifier's with those that `folder` holds, before it is trained."""
    there = {name: said for name, said in contents(folder).items() if name != part}
    for other in PARTS:
        if other in there:
            channels, beside = network_of(there, other).in_channels, f"as of the {other} in {folder}"
            require(network.in_channels == channels, "in_channels", f"{channels}, {beside}", network.in_channels)
    if part == "unet":
        _require_depth(how, _trained(there, "guide"), folder)
        return
    other = "classifier" if part == "guide" else "guide"
    if other in there:
        count = network_of(there, other).num_classes
        require(network.num_classes == count, "num_classes", f"{count}, as of the {other} in {folder}", network.num_classes)
        known = class_names(there, other, count)
        same = None in (known, names) or known == names
        differ = differing_classes(known or (), names or ())
        require(same, "source", f"of the classes of the {other} in {folder}: {differ}", names)
    if part == "guide":
        _require_depth(_trained(there, "unet"), how, folder)


def settled(folder: Path) -> Assembly:
    """How the purifier in `folder` was put together the last time, or our defaults."""
    said = _training(contents(folder), "purifier")
    return from_dict(Assembly, {name: value for name, value in said.items() if name != "data"})


def assemble(
    folder: Path, images: Images, how: Assembly, source: str = "", presets: Mapping[str, Any] | None = None
) -> PurifierConfig | None:
    """Make `folder` a purifier's by the networks in it, and return how it purifies; None where there is no U-Net yet.

    images: training images, float [N, C, H, W] in [0, 1], all of which the guidance is calibrated on; `source` says in words
    where they came from. Without a guide nothing guides, as in DiffPure. presets: other ways to purify, by name (`folders.py`);
    None: those that `config.json` names already. Each gets a scale of its own. Writes `purifier`, `presets` and
    `training.purifier` into `config.json`, and the card. ValueError where t_star goes deeper than the U-Net was trained for.
    """
    there = contents(folder)
    if "unet" not in there:
        return None
    unet, guide = _trained(there, "unet"), _trained(there, "guide")
    plan = PurifierConfig(t_star=depth(how, unet, guide), num_steps=how.num_steps, schedule=unet.schedule, sizes=how.sizes)
    named = dict(there.get("presets", {}) if presets is None else presets)
    if guide is None:
        config, data = replace(plan, guidance=GuidanceConfig(kind="none")), None
    else:
        config, named = _calibrated(folder, there, plan, images, how, named)
        data = remembered(images, None, source)
    for name, preset in own_presets({"purifier": to_dict(config), "presets": named}, folder).items():
        most, t_star = deepest_of(unet), preset.config.t_star
        require(t_star <= most, f"presets.{name}.t_star", f"at most {most}, as the U-Net is trained on", t_star)
    record = {"data": data and to_dict(data), **to_dict(how)}
    add_to_config(folder, purifier=config, presets=named or None, training={"purifier": record})
    write_purifier_card(folder)
    return config


def _calibrated(
    folder: Path, there: dict[str, Any], plan: PurifierConfig, images: Images, how: Assembly, presets: dict[str, Any]
) -> tuple[PurifierConfig, dict[str, Any]]:
    """Both with scales at which the networks in `folder` pull by `how.ratio`, to four digits."""
    unet = load_safetensors(UNet(network_of(there, "unet")), folder / "unet.safetensors")
    guide = load_safetensors(Classifier(network_of(there, "guide")), folder / "guide.safetensors")
    guidance = GuidanceConfig(
        scale=1.0, label_weight=how.label_weight, latent_weight=how.latent_weight, pseudo_label=how.pulls_to
    )
    config = replace(plan, guidance=guidance)
    purifier = GuidedPurifier(Denoiser(unet), guide, config).to(images.device)

    @cache
    def scale(config: PurifierConfig) -> float:
        ways = {field.name: getattr(config, field.name) for field in fields(config)}
        return float(f"{purifier.configured(**ways).calibrate(images, how.ratio):.4g}")

    known = own_presets({"purifier": to_dict(config), "presets": presets}, folder)
    pulls = {name: {**presets[name].get("guidance", {}), "scale": scale(preset.config)} for name, preset in known.items()}
    named = {name: {**presets[name], "guidance": pulls[name]} for name in known}
    return replace(config, guidance=replace(config.guidance, scale=scale(config))), named


def depth(how: Assembly, unet: DiffusionTraining, guide: TradesTraining | None) -> int:
    """t_star: as asked for, as deep as the guide was trained for, or `DEEPEST`; never beyond what the U-Net was trained on."""
    deepest = deepest_of(unet)
    if how.t_star is not None:
        require(how.t_star <= deepest, "t_star", f"at most {deepest}, the timesteps that the U-Net is trained on", how.t_star)
        return how.t_star
    return guide.t_star if guide is not None and guide.t_star else min(DEEPEST, deepest)


def deepest_of(unet: DiffusionTraining) -> int:
    """The timesteps that a U-Net was trained on."""
    return unet.t_max or unet.schedule.num_timesteps


def _trained(there: dict[str, Any], part: str) -> Any:
    """How a network in the folder was trained; by our defaults where it does not say, None where there is none."""
    said = {name: value for name, value in _training(there, part).items() if name != "data"}
    kind = DiffusionTraining if part == "unet" else TradesTraining
    return from_dict(kind, said) if part in there else None


def _training(there: dict[str, Any], part: str) -> dict[str, Any]:
    said = there.get("training", {})
    found = said.get(part, {}) if isinstance(said, dict) else said
    require(isinstance(found, dict), f"training.{part} of config.json", "an object", found)
    return found


def _require_depth(unet: DiffusionTraining | None, guide: TradesTraining | None, folder: Path) -> None:
    """A guide that was trained on noisy views sees no noise that the U-Net does not know."""
    if unet is None or guide is None or guide.t_star == 0:
        return
    deepest = deepest_of(unet)
    require(guide.t_star <= deepest, "t_star", f"at most {deepest}, the timesteps (t_max) of the U-Net in {folder}", guide.t_star)
    same = guide.schedule == unet.schedule
    require(same, "schedule", f"one for guide and U-Net in {folder}, {unet.schedule}", guide.schedule)
