"""A purifier's folder, written and read: `config.json` and weights as safetensors.

`config.json` holds schema_version, unet and purifier, and where there are such: guide, classifier, precision (of the stored
weights), origin (the files that were converted), class_names (of guide and classifier), training (what each network was
trained on and how, and what the guidance was calibrated on), and presets (other ways to purify, by name: what differs from
purifier, and a sentence `about` it). `{part}.safetensors` lies beside it for unet, guide and classifier.
Where networks are not ours, own_denoiser stands in place of unet, own_guide in place of guide: what a purifier must know of them,
and their weights. Their code is the user's, who hands the modules in: a folder's is never run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, NamedTuple

from purify_engine.config import PRESETS, SCHEMA_VERSION, PurifierConfig, from_dict, require, to_dict
from purify_engine.files import write_text

EMBEDDED = Path(__file__).parent / "weights"


def write_config(folder: Path, **parts: Any) -> None:
    """Write `config.json` from dataclasses and plain data; a part that is None is left out."""
    given = {name: part for name, part in parts.items() if part is not None}
    plain = {name: _plain(part) for name, part in given.items()}
    content = {"schema_version": SCHEMA_VERSION, **plain}
    write_text(folder / "config.json", json.dumps(content, indent=2) + "\n")


def add_to_config(folder: Path, **parts: Any) -> None:
    """The same beside what `config.json` says already; of `class_names` and `training` the networks that are not named stay."""
    there = read_config(folder, needed=()) if (folder / "config.json").is_file() else {}
    for name in ("class_names", "training"):
        if name in parts:
            together = {**there.get(name, {}), **parts[name]}
            parts[name] = {network: _plain(said) for network, said in together.items() if said is not None} or None
    write_config(folder, **{**{name: part for name, part in there.items() if name != "schema_version"}, **parts})


def class_names(config: Mapping[str, Any], part: str, num_classes: int) -> tuple[str, ...] | None:
    """Names of the classes 0, 1, ... of the guide or the classifier, where `config.json` has them."""
    said = config.get("class_names")
    names = said.get(part) if isinstance(said, dict) else said
    whole = isinstance(names, list) and all(isinstance(name, str) for name in names) and len(set(names)) == num_classes
    require(names is None or whole, f"class_names.{part}", f"a list of {num_classes} different texts, or null", names)
    return None if names is None else tuple(names)


class OwnPreset(NamedTuple):
    """A way to purify that a purifier's folder names."""

    config: PurifierConfig
    about: str


def own_presets(config: Mapping[str, Any], folder: Path) -> dict[str, OwnPreset]:
    """The presets that a folder's `config.json` names, in its order; ValueError, in one line, where one is impossible.

    Each is an object of fields of PurifierConfig, `guidance` one of its own fields, in place of what `purifier` says.
    """
    said = config.get("presets", {})
    require(isinstance(said, dict), f"presets of {folder / 'config.json'}", "an object of presets", said)
    found = {}
    for name, changes in said.items():
        where = f"presets.{name} of {folder / 'config.json'}"
        require(name not in PRESETS, where, "called otherwise than a paper's preset", name)
        require(isinstance(changes, dict), where, "an object of what differs from purifier", changes)
        try:
            found[name] = _preset({**changes}, config["purifier"])
        except ValueError as wrong:
            raise ValueError(f"{where} is impossible: {wrong}") from None
    return found


def _preset(changes: dict[str, Any], purifier: dict[str, Any]) -> OwnPreset:
    about, guidance = changes.pop("about", ""), changes.pop("guidance", {})
    require(isinstance(about, str), "about", "a text", about)
    require(isinstance(guidance, dict), "guidance", "an object of its fields", guidance)
    require("schedule" not in changes, "schedule", "left out: the diffusion model has one", changes.get("schedule"))
    merged = {**purifier, **changes, "guidance": {**purifier.get("guidance", {}), **guidance}}
    return OwnPreset(from_dict(PurifierConfig, merged), about)


def differing_classes(wanted: tuple[str, ...], found: tuple[str, ...]) -> str:
    """In what two sets of classes differ, in words."""
    missing, extra = ([name for name in one if name not in other] for one, other in ((wanted, found), (found, wanted)))
    said = [f"{what} {', '.join(map(repr, names[:5]))}{', ...' * (len(names) > 5)}" for what, names in
            (("missing", missing), ("not among them", extra)) if names]  # fmt: skip
    return "; ".join(said) or "in another order"


def _plain(part: Any) -> Any:
    return to_dict(part) if is_dataclass(part) and not isinstance(part, type) else part


def read_config(folder: Path, needed: tuple[str, ...] = ("unet", "purifier")) -> dict[str, Any]:
    """What `config.json` says, of this release's schema, with the parts that are needed: unet or, in its place, own_denoiser."""
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: a purifier folder holds config.json and unet.safetensors (save_pretrained writes it)"
        )
    try:
        config = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} must be JSON, got an error at line {error.lineno}: {error.msg}") from error
    held = ", ".join(config)[:200] if isinstance(config, dict) else type(config).__name__
    parts = {"unet" if part == "own_denoiser" else part for part in config} if isinstance(config, dict) else set()
    require(parts >= {*needed}, str(path), f"an object with {' and '.join(needed)}", held)
    version = config.get("schema_version")
    require(version == SCHEMA_VERSION, f"schema_version of {path}", f"{SCHEMA_VERSION} for this release", version)
    return config
