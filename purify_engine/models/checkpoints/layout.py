"""What a published layout is: how its weights are recognised, and which of a file's tensors make which of ours.

A layout is data: a function from names and shapes to a configuration, and a list of entries, each of which can be read from a
file's tensors and written back. Rules work on tensors of any device, the meta device included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from purify_engine.config import ScheduleConfig, require

SIXTEEN_BITS = (torch.float16, torch.bfloat16)
FLOATS = (*SIXTEEN_BITS, torch.float32, torch.float64)  # those of 8 bits were divided by a scale that is no weight

ConfigT = TypeVar("ConfigT")
Tensors = Mapping[str, Tensor]
Shapes = Mapping[str, tuple[int, ...]]
Given = Mapping[str, Any]  # fields of the configuration that the user states, because weights cannot tell them
Beside = Mapping[str, Any]  # the JSON files beside the weights, by name; none beside a single file


@dataclass(frozen=True)
class Rule:
    """How tensors of a file become one of ours, and how ours becomes them again."""

    read: Callable[..., Tensor]
    write: Callable[[Tensor], tuple[Tensor, ...]]


SAME = Rule(lambda weight: weight, lambda weight: (weight,))
TRANSPOSED = Rule(lambda weight: weight.t()[..., None, None], lambda weight: (weight.flatten(1).t(),))  # [in, out] -> 1x1 conv


def as_conv1x1(dims: int) -> Rule:
    """A linear layer's [out, in], or a 1-d convolution's [out, in, 1] (`dims` dimensions), as a 1x1 convolution."""

    def write(weight: Tensor) -> tuple[Tensor, ...]:
        return (weight.reshape(weight.shape[:2] + (1,) * (dims - 2)),)

    return Rule(lambda weight: weight.reshape(*weight.shape[:2], 1, 1), write)


def stacked(rule: Rule = SAME) -> Rule:
    """Three tensors, queries, keys and values, one below the other; each is read by `rule` first."""

    def write(weight: Tensor) -> tuple[Tensor, ...]:
        return tuple(part for third in weight.chunk(3) for part in rule.write(third))

    return Rule(lambda *parts: torch.cat([rule.read(part) for part in parts]), write)


class Entry(NamedTuple):
    """One of our tensors, and the names of those of the file that make it."""

    ours: str
    theirs: tuple[str, ...]
    rule: Rule = SAME


def pair(ours: str, theirs: str, weight: Rule = SAME, bias: Rule = SAME) -> Iterator[Entry]:
    """The weight and the bias of one module of ours and one of theirs."""
    yield Entry(f"{ours}.weight", (f"{theirs}.weight",), weight)
    yield Entry(f"{ours}.bias", (f"{theirs}.bias",), bias)


class Told(NamedTuple):
    """Fields of a configuration that weights do not tell and their publisher does; `says` in words where they come from."""

    fields: Mapping[str, Any]
    says: str


@dataclass(frozen=True)
class Layout(Generic[ConfigT]):
    """One published way to store a network.

    recognise: names and shapes, and what the user states, to the configuration; None where the names are another layout's;
    ValueError, in one line, where they are this one's and we cannot run it (conditional on a class, say).
    entries: every tensor of the network that a configuration describes. unwrap: the averaged tensors of a training file that
    keeps them in its own way; None where a file is none of those. Dictionaries of tensors need none (reading.py).
    told: what is known of weights of these names and shapes in a file of this name (without its ending); what the user states
    goes before it.
    stated: fields of the configuration that the JSON files beside the weights say, by file name ("config.json"). schedule: the
    noise schedule that the network was trained on, from the configuration and those files; without it, that of Ho et al.
    sampling: fields of `PurifierConfig`: how those files say that the network is sampled.
    """

    name: str  # as `--layout` says it
    title: str  # whose, in a few words
    recognise: Callable[[Shapes, Given], ConfigT | None]
    entries: Callable[[ConfigT], Iterable[Entry]]
    ignored: tuple[str, ...] = ()  # patterns of names that hold nothing we need
    unwrap: Callable[[Any], Tensors | None] | None = field(default=None)
    told: Callable[[Shapes, str], Sequence[Told]] | None = None
    by_name_only: bool = False  # its names and shapes are another layout's: taken where its own name is said
    stated: Callable[[Beside], Given] | None = field(default=None)
    schedule: Callable[[ConfigT, Beside], ScheduleConfig] | None = field(default=None)
    sampling: Callable[[Beside], Given] | None = field(default=None)


def shapes_of(tensors: Tensors) -> Shapes:
    """The shape of each tensor, by name."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def channels_of(shapes: Shapes, name: str) -> tuple[int, int]:
    """(out, in) of a weight; ValueError, in one line, where it is missing or no weight."""
    if name not in shapes:
        raise ValueError(f"it is no whole checkpoint of its layout: it lacks {name[:80]!r}")
    shape = shapes[name]
    require(len(shape) >= 2 and min(shape) >= 1, name[:80], "a weight [out, in, ...]", shape)
    return shape[0], shape[1]


def require_fields(given: Given, of: type) -> None:
    """Refuse a statement about no field of the configuration class `of`."""
    names = [field.name for field in fields(of)]
    unknown = [name for name in given if name not in names]
    require(not unknown, "given", f"fields of {of.__name__} ({', '.join(names)})", ", ".join(unknown))


def translate(layout: Layout[ConfigT], config: ConfigT, tensors: Tensors, wanted: Shapes, source: str) -> dict[str, Tensor]:
    """Our state_dict from a file's tensors: contiguous, what the file has in 16 bits in float32, which holds it exactly.

    wanted: the shapes of our network. source: what an error calls the file. ValueError, in one line, where a tensor is missing,
    of another shape, or left over.
    """
    left, ours = {name for name in tensors if not _is_ignored(layout, name)}, dict[str, Tensor]()
    for entry in layout.entries(config):
        missing = [name for name in entry.theirs if name not in tensors]
        if missing:
            raise ValueError(f"{source} is no whole {layout.name} checkpoint: it lacks {missing[0]!r}")
        ours[entry.ours] = _read(entry, tensors, wanted[entry.ours], source)
        left.difference_update(entry.theirs)
    if left:
        more = f" and {len(left) - 1} more" if len(left) > 1 else ""
        raise ValueError(f"{source} holds {min(left)[:80]!r}{more}, for which {layout.name} has no place: another network?")
    return ours


def require_floats(weights: Tensors, source: str) -> None:
    """Refuse weights of another kind, which no network computes with."""
    for name, weight in weights.items():
        require(weight.dtype in FLOATS, f"{source}: {name}", "floats of 16, 32 or 64 bits", weight.dtype)


def written(layout: Layout[ConfigT], config: ConfigT, weights: Tensors) -> dict[str, Tensor]:
    """A network's tensors under the layout's own names: what `translate` reads."""
    theirs = dict[str, Tensor]()
    for entry in layout.entries(config):
        theirs.update(zip(entry.theirs, entry.rule.write(weights[entry.ours]), strict=True))
    return theirs


def _read(entry: Entry, tensors: Tensors, wanted: tuple[int, ...], source: str) -> Tensor:
    found = [tensors[name] for name in entry.theirs]
    try:
        made = entry.rule.read(*found)
    except (RuntimeError, ValueError, IndexError, TypeError):
        made = None
    if made is None or tuple(made.shape) != wanted:
        shapes = " and ".join(str(tuple(tensor.shape)) for tensor in found)
        raise ValueError(f"{source}: {entry.theirs[0]!r} must make {entry.ours} of shape {wanted}, got {shapes}")
    return (made.float() if made.dtype in SIXTEEN_BITS else made).contiguous()


def _is_ignored(layout: Layout[Any], name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in layout.ignored)
