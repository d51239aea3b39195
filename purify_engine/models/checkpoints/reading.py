"""From a path to what it holds: tensors and plain data. Nothing that a file brings is ever executed.

safetensors, `torch.save` in both its formats (weights_only=True, memory-mapped), EDM's pickles (`pickled.py`), and folders of
such files with JSON beside them (diffusers). Everything else is refused in one line that says what the file is and what to do.
"""

from __future__ import annotations

import json
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from purify_engine.models.checkpoints.layout import Tensors
from purify_engine.models.checkpoints.pickled import read_pickle
from purify_engine.models.checkpoints.wrappings import USUAL

LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch.save before version 1.6: a pickle of its magic number comes first
LEGACY_PICKLES = 4  # magic number, version of the format, the machine, then what was saved
TORCH_SCRIPT = ("constants.pkl", "code/")  # what torch.jit.save adds beside data.pkl
AGAIN = "copy or download it again"

# The first bytes of what is taken for a checkpoint by mistake, and what to do about it.
STRANGERS: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "is a git-lfs pointer, not the file itself: fetch it with `git lfs pull`"),
    (b"\xff\xd8\xff", "is a JPEG picture"),
    (b"\x89PNG", "is a PNG picture"),
    (b"GIF8", "is a GIF picture"),
    (b"\x1f\x8b", "is a gzip archive: unpack it, and give a PyTorch file in it"),
    (b"BZh", "is a bzip2 archive: unpack it, and give a PyTorch file in it"),
    (b"\xfd7zXZ", "is an xz archive: unpack it, and give a PyTorch file in it"),
    (b"\x28\xb5\x2f\xfd", "is a zstd archive: unpack it, and give a PyTorch file in it"),
    (b"7z\xbc\xaf", "is a 7z archive: unpack it, and give a PyTorch file in it"),
    (b"\x89HDF", "is an HDF5 file (Keras): PyTorch weights are needed"),
    (b"\x93NUMPY", "is a NumPy array: PyTorch weights are needed"),
    (b"%PDF", "is a PDF document"),
)
HTML = "is an HTML page: the download went wrong, e.g. a Google Drive confirmation; download it in a browser or by gdown"
FLAX = "is a msgpack file (Flax, as score_sde's JAX version writes): the PyTorch version's checkpoint is needed"
TAR = "is a tar archive: unpack it, and give a PyTorch file in it"
SCRIPTED = "is a TorchScript file, which is code: save its state_dict by torch.save where you trust it"

PREFIXES = ("module.", "_orig_mod.", "model.")  # DataParallel, torch.compile, and a wrapper's attribute, in any order
DIFFUSERS = "diffusion_pytorch_model"  # how its files of weights begin
KINDS = (".safetensors", ".bin", ".pth", ".pt")  # of files in a folder
DEEP = 3  # wrappers within wrappers, at most
LONG = 16  # entries of a list that may be looked through: ddim's has 5, and a hostile one holds itself a million times


class Opened(NamedTuple):
    """What a path holds: tensors and plain data as they were saved, and the JSON files beside them, by name."""

    content: Any
    beside: Mapping[str, Any]
    files: tuple[Path, ...]  # that were read


def opened(path: Path) -> Opened:
    """What the file or folder at `path` holds, its tensors memory-mapped where the format allows.

    FileNotFoundError where there is nothing, ValueError, in one line, where it is no checkpoint, damaged, or more than data.
    """
    file, *texts = located(path)
    return Opened(_content(file), {text.name: _json(text) for text in texts}, (file, *texts))


def located(path: Path) -> tuple[Path, ...]:
    """The file with the weights, then the JSON files beside it that say what they are, where diffusers wrote it."""
    if path.is_dir():
        return _located_in(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there; give the path of a checkpoint, or of a diffusers folder")
    return (path, *_beside(path.parent)) if path.name.startswith(DIFFUSERS) else (path,)


def is_published(folder: Path) -> bool:
    """Whether a folder is laid out as diffusers has it, a whole pipeline or one network."""
    return (folder / "model_index.json").is_file() or any(folder.glob(f"{DIFFUSERS}*"))


def forms(content: Any) -> Iterator[tuple[str, Tensors]]:
    """Dictionaries of tensors within `content`, and where each lay: averaged weights first, names without prefixes last."""
    for part, tensors in _dictionaries(content, "", DEEP):
        yield part, tensors
        left = list(PREFIXES)
        while found := [prefix for prefix in left if all(name.startswith(prefix) for name in tensors)]:
            left.remove(found[0])
            tensors = {name.removeprefix(found[0]): tensor for name, tensor in tensors.items()}
            yield part, tensors


def _dictionaries(content: Any, part: str, deep: int) -> Iterator[tuple[str, Tensors]]:
    if isinstance(content, list | tuple) and deep and len(content) <= LONG:  # as ddim writes it: the averages come last
        for place in reversed(range(len(content))):
            yield from _dictionaries(content[place], f"{part}.{place}".lstrip("."), deep - 1)
    if not isinstance(content, Mapping):
        return
    tensors = {name: value.detach() for name, value in content.items() if isinstance(name, str) and is_plain(value)}
    if tensors and len(tensors) == len(content) and not any(tensor.is_meta for tensor in tensors.values()):
        yield part, tensors
    elif deep:
        for name in USUAL:
            yield from _dictionaries(content.get(name), f"{part}.{name}".lstrip("."), deep - 1)


def is_plain(value: Any) -> bool:
    """Whether it is a tensor that stores each of its numbers: neither sparse nor quantized, nor one number spread out."""
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_quantized or value.is_nested:
        return False
    return value.numel() * value.itemsize <= value.untyped_storage().nbytes()


def _located_in(folder: Path) -> tuple[Path, ...]:
    """The one network there; a diffusers pipeline's U-Net lies one folder down."""
    root = folder / "unet" if (folder / "unet").is_dir() else folder
    weights = sorted((path for path in root.iterdir() if path.suffix in KINDS), key=_least_changed)
    if not weights:
        there = ", ".join(sorted(path.name for path in folder.iterdir())[:4]) or "nothing"
        raise ValueError(f"{folder} must hold a checkpoint, a file of {', '.join(KINDS)}, got a folder with {there}")
    if len({path.name.partition(".")[0] for path in weights}) > 1:
        raise ValueError(f"{folder} must hold one network, got {', '.join(path.name for path in weights[:4])}: name the file")
    return (weights[0], *_beside(root))


def _beside(root: Path) -> list[Path]:
    """The JSON files of a network and of its scheduler, which in a pipeline lies in a folder beside the network's."""
    scheduler = root.absolute().parent / "scheduler" if root.absolute().name == "unet" else root / "scheduler"
    return [*sorted(root.glob("*.json")), *sorted(scheduler.glob("*.json"))]


def _least_changed(path: Path) -> tuple[bool, bool, int, str]:
    """Of files of one network: float32 before 16 bits, averaged before not averaged, then the safer kind of file."""
    return ".fp16" in path.name, ".non_ema" in path.name, KINDS.index(path.suffix), path.name


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise ValueError(f"{path} must be JSON; {AGAIN}") from None


def _content(path: Path) -> Any:
    with path.open("rb") as file:
        start = file.read(1024)
    _refuse_strangers(path, start)
    if len(start) > 8 and start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= path.stat().st_size - 8:
        return _safetensors(path)
    if start.startswith(b"PK"):
        _refuse_other_zips(path)
        return _loaded(path, mmap=True)
    if start.startswith(LEGACY):
        return _loaded(path, mmap=False)
    if start[:1] == b"\x80" and start[1:2] <= b"\x05":
        return read_pickle(path)
    raise ValueError(f"{path} is damaged, cut short, or no checkpoint: it starts with {start[:12]!r}; {AGAIN}")


def _refuse_strangers(path: Path, start: bytes) -> None:
    if not start:
        raise ValueError(f"{path} is empty; {AGAIN}")
    for magic, what in STRANGERS:
        if start.startswith(magic):
            raise ValueError(f"{path} {what}")
    if re.match(rb"(\xef\xbb\xbf)?\s*<(!doctype|html|head|body|\?xml)", start, re.IGNORECASE):
        raise ValueError(f"{path} {HTML}")
    if start[257:262] == b"ustar":
        raise ValueError(f"{path} {TAR}")
    if path.suffix == ".msgpack" or re.match(rb"([\x81-\x8f]|\xde..|\xdf....)[\xa1-\xbf\xd9]", start, re.DOTALL):
        raise ValueError(f"{path} {FLAX}")


def _refuse_other_zips(path: Path) -> None:
    """A zip must be one that torch.save wrote: one folder with data.pkl in it, and no code."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.partition("/")[2] for name in archive.namelist()]
            unpacked = sum(member.file_size for member in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError):
        raise ValueError(f"{path} is damaged or cut short: its list of contents is missing; {AGAIN}") from None
    if any(name.startswith(TORCH_SCRIPT) for name in names):
        raise ValueError(f"{path} {SCRIPTED}")
    if "data.pkl" not in names:
        raise ValueError(f"{path} is a zip archive that torch.save did not write: unpack it, and give a PyTorch file in it")
    if unpacked > path.stat().st_size:  # read, its pickle might fill the memory
        raise ValueError(f"{path} holds {unpacked:,} bytes when unpacked, but torch.save compresses nothing: {AGAIN}")


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
    except (SafetensorError, RuntimeError, ValueError) as error:
        raise ValueError(f"{path} is damaged or cut short ({_first_line(error)}); {AGAIN}") from None


def _loaded(path: Path, *, mmap: bool) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old storages and of pickle protocols: nothing a user could act on
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # a hostile file can raise anything from within
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        if named is None or not (mmap or _has_whole_pickles(path)):
            raise ValueError(f"{path} is damaged or cut short ({_first_line(error)}); {AGAIN}") from None
        raise ValueError(
            f"{path} holds {named[1][:80]}, which only running code could read: save its state_dict alone where you trust it"
        ) from None


def _has_whole_pickles(path: Path) -> bool:
    """Whether the pickles at the start of an old file end: where one is cut in a name, the rest of that name is no class."""
    try:
        with path.open("rb") as file:
            for _ in range(LEGACY_PICKLES):
                for _ in pickletools.genops(file):
                    pass
    except Exception:  # as many kinds as there are ways to be cut
        return False
    return True


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:160]
