"""Every published layout that is read, and which of them a file has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from purify_engine.config import ClassifierConfig, UNetConfig, require
from purify_engine.models.checkpoints.layout import Given, Layout, Shapes

UNETS: tuple[Layout[UNetConfig], ...] = ()
CLASSIFIERS: tuple[Layout[ClassifierConfig], ...] = ()


class Recognised(NamedTuple):
    """A layout, and the configuration it reads off a file."""

    layout: Layout
    config: UNetConfig | ClassifierConfig


def recognised(
    shapes: Shapes, layouts: Sequence[Layout], source: str, *, given: Given | None = None, layout: str | None = None
) -> Recognised:
    """The layout of `layouts` whose names and shapes these are, or the one named `layout`, with the configuration.

    given: fields of the configuration that weights cannot tell. source: what an error calls the file. ValueError, in one line,
    where none or several fit.
    """
    names = [known.name for known in layouts]
    require(layout in (None, *names), "layout", f"one of {', '.join(names)}", layout)
    fits = []
    for known in layouts:
        config = known.recognise(shapes, given or {}) if layout in (None, known.name) else None
        if config is not None:
            fits.append(Recognised(known, config))
    if len(fits) == 1:
        return fits[0]
    if fits:
        raise ValueError(f"{source} may be {' or '.join(fit.layout.name for fit in fits)}: say which by layout=")
    some = ", ".join(repr(name[:60]) for name in list(shapes)[:3]) or "nothing"
    raise ValueError(f"{source} must have the layout {layout or ' or '.join(names)}, got a file with {some}")
