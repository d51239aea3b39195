"""Runs of the command line with a tiny purifier: torch is imported once, and each run is a child that computes on one thread."""

from __future__ import annotations

import os
import resource
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from purify_engine import (
    Classifier,
    ClassifierConfig,
    Denoiser,
    GuidanceConfig,
    GuidedPurifier,
    PurifierConfig,
    UNet,
    UNetConfig,
)
from purify_engine.cli.run import main
from purify_engine.folders import write_config
from purify_engine.models.checkpoints import save_safetensors
from tests.soak.torchless_run import make_folder

torch.set_num_threads(1)  # and none is begun before a fork


def make_purifier(folder: Path) -> Path:
    """A saved purifier for 1x8x8 images: random weights, three steps, guided."""
    grey = {"in_channels": 1, "mean": (0.3,), "std": (0.4,)}
    network = ClassifierConfig(architecture="cifar_resnet", depth=8, width=8, activation="silu", **grey)  # type: ignore[arg-type]
    small = {"image_size": 8, "in_channels": 1, "base_channels": 8, "channel_mult": (1, 2), "num_res_blocks": 1}
    unet = UNetConfig(**small, attention_resolutions=(), norm_groups=4)  # type: ignore[arg-type]
    config = PurifierConfig(t_star=30, num_steps=3, sampler="ddim", eta=1.0, guidance=GuidanceConfig(scale=1.0))
    torch.manual_seed(0)
    GuidedPurifier(Denoiser(UNet(unet)), Classifier(network), config).save_pretrained(folder)
    save_safetensors(Classifier(network).eval(), folder / "classifier.safetensors")
    write_config(folder, unet=unet, guide=network, classifier=network, purifier=config)
    return folder


def command(
    words: list[str], said: str | None = None, out: str | None = None, limit: int | None = None, computes: bool = True
) -> int:
    """`purify-engine WORDS`.

    said, out: the files that stderr and stdout go to. limit: bytes that a file may have. computes: False where nothing may be
    purified.
    """
    if said is not None:
        os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666), 2)
    if out is not None:
        os.dup2(os.open(out, os.O_WRONLY), 1)
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    if not computes:
        GuidedPurifier.forward = _never  # type: ignore[method-assign]
    try:
        main(words)
    except SystemExit as end:
        return int(end.code or 0)
    raise AssertionError("the command line did not exit")


def _never(*arguments: Any, **options: Any) -> Any:
    raise AssertionError("images are purified, though they cannot be written")


def warm() -> None:
    """One run, so that nothing is imported later."""
    with tempfile.TemporaryDirectory() as scratch:
        purifier, source = make_purifier(Path(scratch, "purifier")), make_folder(Path(scratch, "in"))
        words = ["purify", str(source), str(Path(scratch, "clean")), "--purifier", str(purifier), "--device", "cpu"]
        assert command(words) == 0


RUNS: dict[str, Callable[..., int]] = {"command": command}
