"""Sections that cards get beside what a trainer writes: which recipe and command made the weights, and their hashes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from purify_engine import markdown
from purify_engine.config import to_dict
from purify_engine.files import write_text
from purify_engine.folders import add_to_config, read_config
from purify_engine.models.checkpoints.network import sha256

PARTS = ("unet", "guide", "classifier")


@dataclass(frozen=True, kw_only=True)
class Made:
    """By what."""

    recipe: str
    command: str


def say_made(folder: Path, part: str, made: Made) -> None:
    """Add to a network's card, and to `config.json`, the recipe that it follows and the command."""
    path = folder / f"{part}.md"
    write_text(path, with_section(path.read_text(encoding="utf-8"), "Recipe", _recipe(to_dict(made))))
    add_to_config(folder, recipe=made)


def of_other_weights(card: str, weights: Path, how: str) -> str:
    """The card of a network whose weights are stored otherwise, in words, than by its training."""
    text = re.sub(r"(?<=SHA-256 of the weights: `)[0-9a-f]{64}(?=`)", sha256(weights), card)
    return with_section(text, "File", f"{file_line(weights)} {how}")


def file_line(weights: Path) -> str:
    """The name of a file, its bytes and its hash."""
    return f"`{weights.name}`, {weights.stat().st_size:,} bytes, SHA-256 `{sha256(weights)}`."


def with_section(text: str, title: str, body: str) -> str:
    """A card with a section of this title: in the place of the one that it has, or at its end."""
    section = f"## {title}\n{body}\n"
    found = re.search(rf"^## {re.escape(title)}\n.*?(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    if found is None:
        return f"{text.rstrip()}\n\n{section}"
    after = text[found.end() :]
    return text[: found.start()] + section + ("\n" + after if after else "")


def write_purifier_card(folder: Path) -> None:
    """`purifier.md`: how the folder purifies, by its configuration and by each of its presets, and its files."""
    config = read_config(folder)
    how = config["purifier"]
    rows = [("(as it is)", how["t_star"], how["num_steps"] or how["t_star"], how["guidance"]["scale"], "")]
    rows += [_row(name, {**how, **preset}) for name, preset in config.get("presets", {}).items()]
    table = markdown.table(("preset", "t*", "steps", "scale", "about"), [tuple(map(_shown, row)) for row in rows], left=(0, 4))
    network, guidance = config["unet"], how["guidance"]
    calibrated = config.get("training", {}).get("purifier", {})
    parts = [f"- {file_line(folder / f'{part}.safetensors')}" for part in PARTS if (folder / f"{part}.safetensors").is_file()]
    sections = [
        "# Purifier",
        f"Images of {network['image_size']}x{network['image_size']} pixels, {network['in_channels']} channels; of other sizes: "
        f"{how['sizes']}. Guidance: {guidance['kind']}, latent weight {guidance['latent_weight']:g}, label weight "
        f"{guidance['label_weight']:g}. The cards of its networks lie beside it.",
        f"## Ways to purify\n{table}\n\nEvery scale is calibrated to the ratio {calibrated.get('ratio', 0):g} on "
        f"{calibrated.get('calibration_images', 0)} training images.",
        *([f"## Recipe\n{_recipe(config['recipe'])}"] if "recipe" in config else []),
        "## Files\n" + "\n".join(parts),
    ]
    write_text(folder / "purifier.md", "\n\n".join(sections) + "\n")


def _recipe(made: dict[str, Any]) -> str:
    return f"`{made['recipe']}`" + (f", last by `{made['command']}`" if made["command"] else "") + "."


def _row(name: str, how: dict[str, Any]) -> tuple[Any, ...]:
    return name, how["t_star"], how["num_steps"] or how["t_star"], how["guidance"]["scale"], how.get("about", "")


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
