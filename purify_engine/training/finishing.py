"""What follows the last step of every training: which weights are saved, what they are worth, and the files that say so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

from torch import nn

from purify_engine.training.loop import Loop
from purify_engine.training.model_card import ModelCard, publish
from purify_engine.training.progress import Progress

Figures = dict[str, float]
ModuleT = TypeVar("ModuleT", bound=nn.Module)


@dataclass(frozen=True)
class Comparison(Generic[ModuleT]):
    """The figure by which one of several averages is saved, measured on images that were held out."""

    figure: str
    measure: Callable[[ModuleT], float]
    higher_is_better: bool = True


def finish(
    loop: Loop,
    comparison: Comparison[ModuleT] | None,
    figures: Callable[[ModuleT], Figures],
    card: Callable[[Figures], ModelCard],
    progress: Progress,
) -> ModuleT:
    """Publish a network that is trained, in eval mode, and return it. Of several processes the first measures and writes."""
    model, compared = chosen(loop, comparison)
    if loop.processes.is_first:
        measured = {**figures(model), **compared}
        publish(model, card(measured), loop.out_dir, loop.outcome)
        progress({"network": loop.name, "figures": measured, "weights": str(loop.out_dir / f"{loop.name}.safetensors")})
    loop.processes.wait()
    return model.eval().requires_grad_(True)


def chosen(loop: Loop, comparison: Comparison[ModuleT] | None) -> tuple[ModuleT, Figures]:
    """The weights that are saved; and where there is a choice, what each is worth.

    They are those of `ema_decay`, else the last ones; with `other_ema_decays` and a comparison, the best of all.
    """
    last = {} if loop.config.ema_decay is not None else {"the last weights": loop.model}
    averages = {f"the average over {decay}": average.module for decay, average in loop.averages.items()}
    candidates = cast(dict[str, ModuleT], {**last, **averages})
    if comparison is None or not loop.config.other_ema_decays:
        return next(iter(candidates.values())), {}
    worth = {name: comparison.measure(model.eval()) for name, model in candidates.items()}
    best = (max if comparison.higher_is_better else min)(worth, key=lambda name: worth[name])
    said = {name: f"{name}, which is saved" if name == best else name for name in worth}
    return candidates[best], {f"held-out: {comparison.figure}, {said[name]}": value for name, value in worth.items()}
