"""A trained purifier made ready to be shipped: weights in 16 bits, cards and configuration beside them, hashes of every file."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file
from torch import Tensor

from purify_engine.config import one_of, require
from purify_engine.files import write_folder, write_text
from purify_engine.folders import add_to_config, read_config, write_config
from purify_engine.models.checkpoints.network import sha256
from purify_engine.models.checkpoints.safetensors import write_tensors
from purify_engine.training import cards

Packed = Literal["fp16", "bf16"]
DTYPES: dict[str, torch.dtype] = {"fp16": torch.float16, "bf16": torch.bfloat16}


def pack(folder: Path, output: Path, precision: Packed = "fp16") -> int:
    """Write `output` from the purifier in `folder`, whole or not at all, and return its bytes.

    Matrices and filters are stored in 16 bits, vectors (biases, the statistics of norms) in float32: they are few, and variances
    may be too small for 16 bits. ValueError where `folder` is no purifier that was trained here, `output` holds something, or a
    weight is too large for fp16.
    """
    one_of("precision", precision, Packed)
    free = not output.exists() or (output.is_dir() and not any(output.iterdir()))
    require(free, "output", "a new or an empty folder", str(output))
    config = read_config(folder)
    parts = [part for part in cards.PARTS if part in config]
    missing = [name for part in parts for name in (f"{part}.safetensors", f"{part}.md") if not (folder / name).is_file()]
    require(not missing, "folder", "a purifier that was trained here, with its cards", f"{folder} without {', '.join(missing)}")
    tensors = {part: _halved(folder / f"{part}.safetensors", DTYPES[precision]) for part in parts}

    def fill(made: Path) -> None:
        for part in parts:
            weights = made / f"{part}.safetensors"
            write_tensors(tensors[part], weights)
            stored = f"Matrices and filters are stored in {precision}, and loaded into float32"
            how = f"{stored}; the figures are of the weights before that."
            card = (folder / f"{part}.md").read_text(encoding="utf-8")
            write_text(made / f"{part}.md", cards.of_other_weights(card, weights, how))
            if (folder / f"{part}.svg").is_file():  # the learning curve that the card shows
                write_text(made / f"{part}.svg", (folder / f"{part}.svg").read_text(encoding="utf-8"))
        write_config(made, **{name: said for name, said in config.items() if name != "schema_version"})
        hashes = {part: sha256(made / f"{part}.safetensors") for part in parts}
        add_to_config(made, precision=precision, weights=hashes)
        cards.write_purifier_card(made)

    write_folder(output, fill)
    return sum(path.stat().st_size for path in output.iterdir())


def _halved(path: Path, dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: _stored(f"{name} of {path.name}", tensor, dtype) for name, tensor in load_file(path).items()}


def _stored(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    if not tensor.is_floating_point() or tensor.dim() < 2:
        return tensor
    largest, most = float(tensor.abs().max()), torch.finfo(dtype).max
    require(largest <= most, name, f"at most {most:g} (or --precision bf16)", largest)
    return tensor.to(dtype)
