"""Where purifiers come from: the ones shipped inside the package, a folder, or the Hugging Face Hub.

A folder holds `config.json` (schema_version, unet, guide, classifier, purifier), `unet.safetensors`, and where the configuration
names them `guide.safetensors` and `classifier.safetensors`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from purify_engine.config import (
    SCHEMA_VERSION,
    ClassifierConfig,
    PurifierConfig,
    UNetConfig,
    from_dict,
    require,
    to_dict,
)
from purify_engine.files import write_text
from purify_engine.models.checkpoints import load_safetensors, save_safetensors
from purify_engine.models.classifiers import Classifier
from purify_engine.models.denoiser import Denoiser
from purify_engine.models.unet import UNet

EMBEDDED = Path(__file__).parent / "weights"


def list_purifiers() -> list[str]:
    """Names of the purifiers that work offline, straight after installation."""
    return sorted(folder.name for folder in EMBEDDED.iterdir() if (folder / "config.json").is_file())


def load_networks(name_or_dir: str | Path) -> tuple[Denoiser, Classifier | None, PurifierConfig]:
    """The diffusion model, the guide (None where there is none) and the configuration of a saved purifier."""
    folder = resolve(name_or_dir)
    config = _read_config(folder)
    unet = load_safetensors(UNet(from_dict(UNetConfig, config["unet"])), folder / "unet.safetensors")
    guide = _classifier(folder, "guide", config) if config.get("guide") else None
    return Denoiser(unet), guide, from_dict(PurifierConfig, config["purifier"])


def load_classifier(name_or_dir: str | Path) -> Classifier:
    """The plain classifier shipped beside a purifier, frozen, in evaluation mode: something to defend."""
    folder = resolve(name_or_dir)
    config = _read_config(folder)
    require("classifier" in config, "name_or_dir", "a purifier with a classifier beside it", str(name_or_dir))
    return _classifier(folder, "classifier", config)


def save_networks(folder: Path, denoiser: Denoiser, guide: Classifier | None, config: PurifierConfig) -> None:
    """Write what `load_networks` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    save_safetensors(denoiser.unet, folder / "unet.safetensors")
    if guide is not None:
        save_safetensors(guide, folder / "guide.safetensors")
    write_config(folder, unet=denoiser.unet.config, guide=guide and guide.config, purifier=config)


def write_config(folder: Path, **parts: Any) -> None:
    """Write `config.json` from dataclasses; a part that is None is left out."""
    content = {
        "schema_version": SCHEMA_VERSION,
        **{name: to_dict(part) for name, part in parts.items() if part is not None},
    }
    write_text(folder / "config.json", json.dumps(content, indent=2) + "\n")


def resolve(name_or_dir: str | Path) -> Path:
    """The folder of an embedded name, of a path, or of a Hub id ("owner/name", downloaded by `huggingface_hub`)."""
    folder = Path(name_or_dir)
    embedded = EMBEDDED / str(name_or_dir)
    if (embedded / "config.json").is_file():
        return embedded
    if folder.is_dir():
        return folder
    if str(name_or_dir).count("/") == 1 and not folder.is_absolute():
        return _from_hub(str(name_or_dir))
    known = ", ".join(list_purifiers())
    raise FileNotFoundError(
        f"purifier must be an embedded name ({known}), a folder, or a Hub id owner/name, got {str(name_or_dir)!r}"
    )


def _from_hub(repo_id: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        hint = 'pip install "purify-engine[hub]" to load it from the Hugging Face Hub'
        raise FileNotFoundError(f"purifier {repo_id!r} is no folder here; {hint}") from error
    return Path(snapshot_download(repo_id, allow_patterns=["*.json", "*.safetensors"]))


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: a purifier folder holds config.json and unet.safetensors (save_pretrained writes it)"
        )
    try:
        config = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} must be JSON, got an error at line {error.lineno}: {error.msg}") from error
    require(
        isinstance(config, dict) and {"unet", "purifier"} <= set(config),
        str(path),
        "an object with unet and purifier",
        config,
    )
    version = config.get("schema_version")
    require(version == SCHEMA_VERSION, f"schema_version of {path}", f"{SCHEMA_VERSION} for this release", version)
    return config


def _classifier(folder: Path, part: str, config: dict[str, Any]) -> Classifier:
    network = Classifier(from_dict(ClassifierConfig, config[part]))
    return load_safetensors(network, folder / f"{part}.safetensors").eval().requires_grad_(False)
