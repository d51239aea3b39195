"""A purifier as a preprocessing defence of the Adversarial Robustness Toolbox (ART, 1.20).

`PyTorchClassifier(model, ..., preprocessing_defences=[PurifierPreprocessor(purifier)])`. Importing this module needs ART:
pip install 'purify-engine[art]'.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from purify_engine.foreign import imported
from purify_engine.types import Images

if TYPE_CHECKING:
    from purify_engine.purifier import GuidedPurifier

_PREPROCESSOR: Any = imported("art.defences.preprocessor.preprocessor", "ART", "art").PreprocessorPyTorch


class PurifierPreprocessor(_PREPROCESSOR):
    """`purifier` before an ART classifier: images [B, C, H, W]; give the classifier the purifier's range as clip_values=(0, 1).

    Part of ART's graph: `loss_gradient` and `class_gradient` differentiate the purification that the forward pass ran, in the way
    that the purifier's `gradient` names, as long as every other preprocessing defence is one of PyTorch's. `estimate_gradient`,
    which ART calls elsewhere, purifies again, with the next draw. `__call__` takes and gives NumPy arrays, without gradient.

    apply_fit: purify in `fit`, too. For an attack build a second classifier, on `purifier.twin("attack")`: it must not see the
    draws that are scored.
    """

    params = ["purifier"]

    def __init__(self, purifier: GuidedPurifier, apply_fit: bool = False, apply_predict: bool = True) -> None:
        super().__init__(is_fitted=True, apply_fit=apply_fit, apply_predict=apply_predict)
        self.purifier = purifier

    @property
    def device(self) -> Any:
        """Where the purifier is."""
        return self.purifier.device

    def forward(self, x: Images, y: Any | None = None) -> tuple[Tensor, Any | None]:
        """(purified images, the labels as they are); differentiable."""
        return self.purifier(x), y
