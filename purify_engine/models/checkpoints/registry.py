"""Every published layout that is read, and which of them a file has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from purify_engine.config import ClassifierConfig, UNetConfig, require
from purify_engine.models.checkpoints.diffusers import DIFFUSERS, DIFFUSERS_OLD
from purify_engine.models.checkpoints.edm import EDM
from purify_engine.models.checkpoints.guided_diffusion import GUIDED_DIFFUSION, GUIDED_DIFFUSION_NEW_ORDER
from purify_engine.models.checkpoints.layout import Beside, Given, Layout, Shapes
from purify_engine.models.checkpoints.pesser import PESSER
from purify_engine.models.checkpoints.preact_resnet import PREACT_RESNET
from purify_engine.models.checkpoints.robustbench import ROBUSTBENCH
from purify_engine.models.checkpoints.score_sde import SCORE_SDE
from purify_engine.models.checkpoints.torchvision import TORCHVISION
from purify_engine.models.checkpoints.trades import TRADES

UNETS: tuple[Layout[UNetConfig], ...] = (
    SCORE_SDE,
    PESSER,
    EDM,
    GUIDED_DIFFUSION,
    GUIDED_DIFFUSION_NEW_ORDER,
    DIFFUSERS,
    DIFFUSERS_OLD,
)
CLASSIFIERS: tuple[Layout[ClassifierConfig], ...] = (TRADES, ROBUSTBENCH, PREACT_RESNET, TORCHVISION)


class Recognised(NamedTuple):
    """A layout, the configuration it reads off a file, and in words what of it the weights do not tell."""

    layout: Layout
    config: UNetConfig | ClassifierConfig
    says: tuple[str, ...] = ()


def recognised(
    shapes: Shapes,
    layouts: Sequence[Layout],
    source: str,
    *,
    given: Given | None = None,
    beside: Beside | None = None,
    layout: str | None = None,
    name: str = "",
) -> Recognised:
    """The layout of `layouts` whose names and shapes these are, or the one named `layout`, with the configuration.

    given: fields of the configuration that weights cannot tell. beside: the JSON files beside them (see `Layout.stated`). source:
    what an error calls the file. name: the file's, without its ending. ValueError, in one line, where none or several fit.
    """
    asked = named(layouts, layout)
    try:
        fits = fitting(shapes, asked, given=given, beside=beside, name=name)
    except ValueError as refusal:
        raise ValueError(f"{source}: {refusal}") from None
    if len(fits) == 1:
        return fits[0]
    if fits:
        raise ValueError(f"{source} may be {' or '.join(fit.layout.name for fit in fits)}: say which by layout=")
    some = ", ".join(repr(held[:60]) for held in list(shapes)[:3]) or "nothing"
    raise ValueError(f"{source} must have the layout {' or '.join(known.name for known in asked)}, got a file with {some}")


def named(layouts: Sequence[Layout], layout: str | None) -> Sequence[Layout]:
    """The one of `layouts` that is named `layout`; where it is None, all that need no name. ValueError where it is unknown."""
    names = [known.name for known in layouts]
    require(layout in (None, *names), "layout", f"one of {', '.join(names)}", layout)
    return [known for known in layouts if known.name == layout or (layout is None and not known.by_name_only)]


def fitting(
    shapes: Shapes, layouts: Sequence[Layout], *, given: Given | None = None, beside: Beside | None = None, name: str = ""
) -> list[Recognised]:
    """Every layout of `layouts` whose names and shapes these may be; the arguments are those of `recognised`."""
    empty = next((held for held, shape in shapes.items() if 0 in shape), None)
    require(empty is None, "every tensor", "of one number at least", empty and empty[:60])
    fits = []
    for known in layouts:
        try:
            fields, says = _known(known, shapes, given or {}, beside or {}, name)
            config = known.recognise(shapes, fields)
        except (IndexError, KeyError):  # a layout looks at shapes of its names, which may have other dimensions
            raise ValueError(f"names of {known.name} must have its tensors, got ones of other shapes") from None
        if config is not None:
            fits.append(Recognised(known, config, says))
    return fits


def _known(layout: Layout, shapes: Shapes, given: Given, beside: Beside, name: str) -> tuple[Given, tuple[str, ...]]:
    """What is given, with what lies beside the file or the layout knows of such weights; and in words what the latter knows."""
    given = {**(layout.stated(beside) if layout.stated and beside else {}), **given}
    told = [told for told in (layout.told(shapes, name) if layout.told else ()) if not set(told.fields) <= set(given)]
    fields = {field: value for one in told for field, value in one.fields.items()}
    return {**fields, **given}, tuple(one.says for one in told)
