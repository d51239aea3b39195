"""Our own layout: the state_dict as it is, in one safetensors file. A file that is wrong, in whatever way, is one line."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from purify_engine.files import write_whole

ModuleT = TypeVar("ModuleT", bound=nn.Module)

PORTION = 2**26  # numbers read through one mapping of the file: its pages count as this process's memory until it is closed
PICKLE_MAGICS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")  # torch.save's zip, and plain pickles
PICKLE_SUFFIXES = (".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".bin")


def save_safetensors(module: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write the state_dict of `module` to `path`, whole or not at all; missing folders are made."""
    weights = {name: tensor.cpu().contiguous() for name, tensor in module.state_dict().items()}
    write_tensors(weights, Path(path))


def write_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write contiguous tensors, none of which shares its memory, whole or not at all; OSError where the disk is full, say."""
    try:
        write_whole(path, lambda temporary: save_file(tensors, temporary))
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None


def load_safetensors(module: ModuleT, path: str | os.PathLike[str]) -> ModuleT:
    """Copy the weights at `path` into `module` and return it; it stays untouched when they do not fit.

    Raises FileNotFoundError where there is no file, and ValueError for a pickle (never opened), a damaged file, or weights of
    another network; each in one line that names the file and says what to do.
    """
    weights = _read(module, Path(path), None)
    module.load_state_dict(weights, strict=False)  # the names were checked; only counters of batch norms may be missing
    return module


def built_from_safetensors(
    network: Callable[[], ModuleT], path: str | os.PathLike[str], dtype: torch.dtype | None = None
) -> ModuleT:
    """`network()` with the weights at `path` for its parameters: no random ones are drawn, and no memory is filled twice.

    For networks whose state_dict is their whole state. dtype: of the parameters; None: as stored. Errors as `load_safetensors`.
    """
    with torch.device("meta"):
        module = network()
    module.load_state_dict(_read(module, Path(path), dtype), assign=True)
    return module


def _read(module: nn.Module, path: Path, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """The weights at `path`, of `module`'s names and shapes; floats in `dtype`, where one is given, as they are read."""
    _refuse_what_is_no_safetensors(path)
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
            found = {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()}
        _refuse_other_networks(module, found, path)
        weights = dict[str, Tensor]()
        for names in _portions({name: math.prod(shape) for name, (shape, _) in found.items()}):
            with safe_open(path, framework="pt") as file:
                weights |= {name: _owned(file.get_tensor(name), dtype) for name in names}
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or cut short ({_first_line(error)}); copy or download it again") from None
    return weights


def _portions(sizes: dict[str, int]) -> Iterator[list[str]]:
    """Names in portions of at most PORTION numbers, or one tensor."""
    names: list[str] = []
    for name, size in sizes.items():
        if names and sum(sizes[other] for other in names) + size > PORTION:
            yield names
            names = []
        names.append(name)
    yield names


def _owned(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """A copy: a tensor of the mapped file would change with the file, and end the process where that is cut short."""
    return tensor.to(dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype, copy=True)


def _refuse_what_is_no_safetensors(path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file; give the path of a .safetensors file")
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(9)
    # The header's length, 8 bytes, and its opening brace. Looked at first: a length may well begin with the bytes of a pickle.
    if len(start) == 9 and start[8:] == b"{" and int.from_bytes(start[:8], "little") <= size - 8:
        return
    if start.startswith(PICKLE_MAGICS) or path.suffix in PICKLE_SUFFIXES:
        raise ValueError(f"{path} is a pickle, which can run code when opened; convert it to .safetensors where you trust it")
    raise ValueError(f"{path} is damaged, cut short, or no safetensors file; copy or download it again")


def _refuse_other_networks(module: nn.Module, found: dict[str, tuple[tuple[int, ...], str]], path: Path) -> None:
    """`found` maps names to shape and dtype, e.g. ((64, 3, 3, 3), "F32"). Read from the header: nothing is loaded yet."""
    wanted = module.state_dict()
    missing = [name for name in wanted if name not in found and not name.endswith("num_batches_tracked")]
    unknown = [name for name in found if name not in wanted]
    if missing or unknown:
        _refuse(path, f"it lacks {_some(missing)}" if missing else f"it holds the unknown {_some(unknown)}")
    for name in (name for name in wanted if name in found):
        tensor, (shape, dtype) = wanted[name], found[name]
        if shape != tensor.shape:
            _refuse(path, f"{name} must be {tuple(tensor.shape)}, got {shape}")
        if ("F" in dtype) != tensor.is_floating_point():  # F16, BF16, F32, F64: a float of another width is converted
            _refuse(path, f"{name} must be {tensor.dtype}, got {dtype}")


def _refuse(path: Path, reason: str) -> NoReturn:
    raise ValueError(f"{path} belongs to another network: {reason}; check the configuration beside it")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{names[0][:80]!r}{more}"  # repr and a limit: the name may come from a hostile file


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:200]
