"""Guides whose second derivative is zero, and what that does to attacks: said once, where such a guide is differentiated.

The pull is the gradient of the guide's objective, so the gradient of the whole purifier holds the guide's second derivatives.
Those of a ReLU are zero wherever they exist; what it does over a finite distance happens at its kinks, which no derivative sees.
The exact gradient is then right for steps of 1e-6 and may be wrong for an attack's steps: an attack that fails by it proves
nothing (gradient masking: Athalye et al. 2018).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, cast
from weakref import WeakSet

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from purify_engine.config import GradientMode
from purify_engine.engine.guide import AdversarialGuide, Guide
from purify_engine.models.classifiers import Classifier
from purify_engine.types import Images

# Of straight pieces, so that the second derivative is zero wherever there is one. ReLU6 is a Hardtanh.
PIECEWISE_LINEAR: tuple[type[nn.Module], ...] = (
    nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.Hardtanh, nn.Hardsigmoid, nn.Hardshrink, nn.Softshrink, nn.Threshold,
)  # fmt: skip
# The same as operations, for guides that call torch.nn.functional.
OPERATIONS = frozenset(
    "relu leaky_relu _prelu_kernel rrelu_with_noise hardtanh hardsigmoid hardshrink softshrink threshold".split()  # noqa: SIM905
)
MASKING_MODES = "exact", "straight_through"

_judged: WeakSet[nn.Module] = WeakSet()  # networks of guides of which all was said that there is to say
_known: ContextVar[bool] = ContextVar("masking is known", default=False)


class MaskedGradientWarning(UserWarning):
    """A purifier is differentiated through a guide of straight pieces: attacks by that gradient alone may overrate it."""


@contextmanager
def masking_is_known() -> Iterator[None]:
    """No `MaskedGradientWarning` in this block: it attacks in other ways, too, and says where the exact gradient is masked."""
    token = _known.set(True)
    try:
        yield
    finally:
        _known.reset(token)


def warn_of_masking(guide: Guide, mode: GradientMode, x: Images) -> None:
    """`MaskedGradientWarning`, once for each guide's network, where `mode` differentiates one that is not smooth.

    `x` in [-1, 1]: what a network that is not ours is shown once, to see which operations it calls.
    """
    if mode not in MASKING_MODES or not isinstance(guide, AdversarialGuide):
        return
    network = cast(nn.Module, guide.network)
    if network in _judged or _known.get():
        return
    _judged.add(network)
    piece = straight_piece(guide, x)
    if piece is not None:
        warnings.warn(
            f"the guide has {piece}, whose second derivative is zero, so gradient={mode!r} may be masked: attacks by it alone "
            "may overrate the defence; guide by a smooth network (activation 'silu', the default of `purify-engine train "
            "trades`), attack by gradient='bpda' and 'surrogate' and by transfer, too, or run `purify-engine evaluate`, which "
            "tests the gradient and marks what is masked",
            MaskedGradientWarning,
            stacklevel=2,
        )


def straight_piece(guide: AdversarialGuide, x: Images) -> str | None:
    """What of the guide's network has no second derivative, by name; None where it is smooth."""
    network = cast(nn.Module, guide.network)
    for module in network.modules():
        if isinstance(module, PIECEWISE_LINEAR):
            return type(module).__name__
    if isinstance(network, Classifier):
        return None
    with torch.no_grad(), _Seen() as seen:
        guide.target(x.detach())
    return next(iter(seen.pieces), None)


class _Seen(TorchDispatchMode):
    """The names of those `OPERATIONS` that are called."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: purifiers are not compiled (uncompiled.py), and PyTorch imports its compiler to skip it."""
        return False

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__.removesuffix("_")
        if name in OPERATIONS:
            self.pieces.append(name)
        return func(*args, **(kwargs or {}))
