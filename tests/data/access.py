"""Single items of a source and a sink, as tests ask for them."""

from pathlib import Path

import numpy as np
import torch

from purify_engine.data import Item, ItemError, Outcome, Part, pixels
from purify_engine.data.reading import in_unit_range


def decode(content, channels):
    """An image file as float32 [C, H, W] in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(in_unit_range(pixels.decode(content, channels))))


def item_of(source, id):
    """Item `id`, by the part that holds it."""
    (part,) = [part for part in source.parts(256) if id in part.ids]
    return next(item for item in source.items(part) if item.id == id)


def read(source, id):
    """Item `id` as float32 [C, H, W] in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(in_unit_range(source.decode(item_of(source, id)))))


def names(source):
    return tuple(source.name(id) for id in range(len(source)))


def write(source, sink, images, assemble=True):
    """Write {id: tensor [C, H, W]} as one part, the whole source; ids without an image have failed. What `Sink.write` returns."""
    sink.prepare()
    part = Part(0, 0, len(source))
    items = [Item(id, source.name(id), Path()) for id in part.ids]
    outcomes = [
        Outcome(item, sink.encode(item, images[item.id].numpy()) if item.id in images else ItemError("failed")) for item in items
    ]
    written, failed = sink.write(part, outcomes)
    if assemble:
        sink.assemble([part], [item.id for item, _ in failed], written)
    return written, failed
