"""A folder of trainings made light enough to travel: what is finished in bfloat16, and of what is not, what it takes to go on.

Of a checkpoint there stay the step, the seconds and the moving average, which is the better network of the two, in bfloat16. Of
Adam's squared gradients there stay the means over rows and over columns (Shazeer & Stern 2018, Adafactor), of momentum nothing:
it is made anew within tens of steps. A training that goes on from it is not the same to the bit as one without the journey.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from purify_engine.files import make_folder, write_whole

LIGHT = ".light"  # what the name of a light checkpoint ends in
Tensors = dict[str, Tensor]


def lightened(folder: Path, into: Path) -> None:
    """Copy `folder` to `into`, its weights and its checkpoints light; its other files as they are."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        target = into / path.relative_to(folder)
        make_folder(target.parent)
        if path.suffix == ".safetensors":
            write_whole(target, lambda temporary, path=path: save_file(_halved(load_file(path)), temporary))  # type: ignore[misc]
        elif path.suffix == ".checkpoint":
            state = _light(torch.load(path, map_location="cpu", weights_only=True))
            target = target.with_suffix(path.suffix + LIGHT)
            write_whole(target, lambda temporary, state=state: torch.save(state, temporary))  # type: ignore[misc]
        else:
            write_whole(target, lambda temporary, path=path: shutil.copyfile(path, temporary))  # type: ignore[misc]


def restored(folder: Path) -> list[Path]:
    """Make of every light checkpoint in `folder` one that a training goes on from; the light ones go."""
    made = []
    for light in sorted(folder.rglob(f"*.checkpoint{LIGHT}")):
        state = _whole(torch.load(light, map_location="cpu", weights_only=True))
        target = light.with_suffix("")
        write_whole(target, lambda temporary, state=state: torch.save(state, temporary))  # type: ignore[misc]
        light.unlink()
        made.append(target)
    return made


def _light(state: dict[str, Any]) -> dict[str, Any]:
    averages = {decay: average["n_averaged"] for decay, average in state["averages"].items()}
    kept = state["model"]
    if averages:
        longest = state["averages"][max(averages, key=float)]
        kept = {name.removeprefix("module."): value for name, value in longest.items() if name.startswith("module.")}
    optimizer = {"param_groups": state["optimizer"]["param_groups"], "state": {}}
    for place, of in state["optimizer"]["state"].items():
        if "exp_avg_sq" in of:
            optimizer["state"][place] = {"step": of["step"], "shape": list(of["exp_avg_sq"].shape), **_factored(of["exp_avg_sq"])}
    others = {name: value for name, value in state.items() if name not in ("model", "averages", "optimizer")}
    return {**others, "model": _halved(kept), "averaged": averages, "optimizer": optimizer}


def _whole(light: dict[str, Any]) -> dict[str, Any]:
    model = {name: value.float() if value.dtype == torch.bfloat16 else value for name, value in light["model"].items()}
    named = {f"module.{name}": value for name, value in model.items()}
    averages = {decay: {"n_averaged": count, **named} for decay, count in light["averaged"].items()}
    optimizer = {"param_groups": light["optimizer"]["param_groups"], "state": {}}
    for place, of in light["optimizer"]["state"].items():
        squares = _product(of["rows"], of["columns"]).reshape(of["shape"])
        optimizer["state"][place] = {"step": of["step"], "exp_avg": torch.zeros_like(squares), "exp_avg_sq": squares}
    others = {name: value for name, value in light.items() if name not in ("model", "averaged", "optimizer")}
    return {**others, "model": model, "averages": averages, "optimizer": optimizer}


def _halved(tensors: Tensors) -> Tensors:
    """Matrices and filters in bfloat16; vectors, which are few, and what is no float, as they are."""
    wide = {name for name, value in tensors.items() if value.dtype == torch.float32 and value.dim() >= 2}
    return {name: (value.bfloat16() if name in wide else value).contiguous() for name, value in tensors.items()}


def _factored(squares: Tensor) -> Tensors:
    """Means over rows and over columns of what is no vector; a vector as it is, as its own row."""
    matrix = squares.reshape(len(squares), -1) if squares.dim() >= 2 else squares.reshape(1, -1)
    return {"rows": matrix.mean(1), "columns": matrix.mean(0)}


def _product(rows: Tensor, columns: Tensor) -> Tensor:
    return torch.outer(rows, columns) / rows.mean().clamp_min(torch.finfo(rows.dtype).tiny)
