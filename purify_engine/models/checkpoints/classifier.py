"""A classifier out of what a published file holds, whatever that is wrapped in, and in words what its weights do not tell.

Around the weights stand a training script's dictionary ("state_dict", "net", ...), and before each name what they were saved
through ("module.", "model.", "1.", ...); beside them the mean and the deviation that images are normalised by.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import filter as filter_names
from typing import Any, NamedTuple

from torch import Tensor

from purify_engine.config import ClassifierConfig, require
from purify_engine.models.checkpoints.classifier_names import COUNTERS, own_shapes
from purify_engine.models.checkpoints.layout import Given, Tensors, require_floats, shapes_of, translate
from purify_engine.models.checkpoints.normalisation import in_file, is_buffer, stated
from purify_engine.models.checkpoints.reading import is_plain
from purify_engine.models.checkpoints.registry import CLASSIFIERS, recognised

WRAPPERS = ("state_dict", "model_state_dict", "net", "model", "last", "best")
STEMS = ("conv1.weight", "init_conv.weight", "conv_2d.weight")
HEADS = ("fc.weight", "linear.weight", "logits.weight")
COPIES = "attacker."  # what the `robustness` library saves a second time


class ReadClassifier(NamedTuple):
    """A configuration and the weights for it, the layout that they came in, and in words what they do not tell."""

    config: ClassifierConfig
    weights: dict[str, Tensor]
    layout: str
    says: tuple[str, ...]


def read_classifier(
    held: Mapping[str, Any], name: str, source: str, *, given: Given | None = None, layout: str | None = None
) -> ReadClassifier:
    """What a file holds, as a classifier of ours.

    held: a dictionary of tensors, or one that holds such a dictionary. name: the file's, without its ending: RobustBench's names
    tell a normalisation. source: what an error calls the file. given: fields of `ClassifierConfig` that the user states, and
    `normalisation`, a name of `NORMALISATIONS`; they go before the file's own mean and deviation, and these before a name's.
    ValueError, in one line, for what is no classifier of a known layout, lacks a tensor, or whose normalisation is not known.
    """
    tensors, buffers = unwrapped(held, source)
    try:
        own, given = in_file(buffers), stated(given or {})
        if own is not None and "mean" not in given:  # else 255 times too large, in silence
            fits = all(0 <= one <= 1 for one in own.mean)
            require(fits, "the file's means", "in [0, 1], as images are (state normalisation)", own.mean[:4])
        fields = {**(own.fields() if own else {}), **given}
        found = recognised(shapes_of(tensors), CLASSIFIERS, source, given=fields, layout=layout, name=name)
    except ValueError as error:
        raise ValueError(str(error) if source in str(error) else f"{source}: {error}") from None
    assert isinstance(found.config, ClassifierConfig)
    weights = translate(found.layout, found.config, tensors, own_shapes(found.config), source)
    require_floats(weights, source)
    says = [*found.says, *_left_out(held, tensors, found.layout.ignored)]
    if own is not None and "mean" not in given:
        says.append(f"normalised by the file's own {_some(buffers)}")
    return ReadClassifier(found.config, weights, found.layout.name, tuple(says))


def _left_out(held: Mapping[str, Any], tensors: Tensors, ignored: tuple[str, ...]) -> list[str]:
    """In words what of a file is not read."""
    patterns = [pattern for pattern in ignored if pattern != COUNTERS and filter_names(tensors, pattern)]
    said = [f"{pattern} is left out: the network never reads it" for pattern in patterns]
    return [*said, "the weights of the last epoch, not of the best, as RobustBench"] if set(held) >= {"last", "best"} else said


def is_classifier(held: Any) -> bool:
    """Whether a file's content has, somewhere, a first convolution and a head by the names of a classifier's."""
    parts = [held, *held.values()] if isinstance(held, Mapping) else []
    return any(_prefixes(_tensors(part)) for part in parts if isinstance(part, Mapping))


def unwrapped(held: Mapping[str, Any], source: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(weights under the names of their network, means and deviations beside them) of what a file holds."""
    tensors = _weights(held, source)
    tensors = {name: tensor for name, tensor in tensors.items() if COPIES not in name}
    buffers = {name: tensor for name, tensor in tensors.items() if is_buffer(name)}
    prefix = _prefix(tensors, source)
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name not in buffers}, buffers


def _weights(held: Mapping[str, Any], source: str) -> Tensors:
    """The dictionary of tensors in a file: the file itself, or the one that a training script put into another."""
    if own := _tensors(held):
        return own
    inside = {name: found for name, value in held.items() if isinstance(value, Mapping) and (found := _tensors(value))}
    if set(inside) == {"last", "best"}:  # RobustBench evaluates the last epoch (robustbench/utils.py)
        return inside["last"]
    known = [name for name in inside if name in WRAPPERS]
    if len(inside) == 1 or len(known) == 1 and not any(_prefixes(inside[name]) for name in inside if name not in known):
        return inside[(known or list(inside))[0]]
    got = _some(inside) or "none"
    raise ValueError(f"{source} must hold the weights of one network, got {got}: save the wanted ones alone")


def _tensors(held: Mapping[str, Any]) -> dict[str, Tensor]:
    return {str(name): value for name, value in held.items() if is_plain(value)}


def _prefixes(tensors: Tensors) -> list[str]:
    """What stands before the names of each network in `tensors`: where a first convolution and a head are."""
    names = {name: stem for name in tensors for stem in STEMS if name.endswith(stem)}
    before = {name.removesuffix(stem) for name, stem in names.items()}
    return sorted(one for one in before if (not one or one.endswith(".")) and any(one + head in tensors for head in HEADS))


def _prefix(tensors: Tensors, source: str) -> str:
    found = _prefixes(tensors)
    if len(found) > 1:
        raise ValueError(f"{source} must hold one network, got {len(found)} ({', '.join(map(repr, found))[:120]}): an ensemble?")
    return found[0] if found else ""


def _some(names: Mapping[str, Any]) -> str:
    return ", ".join(repr(name[:60]) for name in sorted(names)[:4])
