"""`DefendedClassifier`: a purifier before a classifier as one module, images in and logits out, over several draws if asked."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from purify_engine.config import one_of, require, require_count
from purify_engine.types import Ids, Images, Logits

if TYPE_CHECKING:
    from purify_engine.purifier import GuidedPurifier

Vote = Literal["logits", "probabilities", "majority"]


class DefendedClassifier(nn.Module):
    """`classifier(purifier(images))`: float images [B, C, H, W] as the purifier takes them in, float logits [B, classes] out.

    purifier: with its own noise and gradient mode. classifier: a module, or any callable, from purified images to logits
    [B, classes], or to an object that holds them as `logits`, as Hugging Face's models return.
    num_draws: K independent purifications of every image, at K times the cost. vote: how their K answers become one:
    "logits": their mean. "probabilities": the logarithm of the mean probability. "majority": for each class the number of draws
    that answer it, 0 to K; among equals argmax takes the first class.

    The first two are differentiable, through all K draws, in the way that the purifier's `gradient` names. Counts are not: the
    forward pass is the same with and without gradients, and a backward pass raises RuntimeError rather than give zeros. Attack
    `vote="probabilities"`, and score the majority.

    The purifier always stays in evaluation mode. The classifier stays in the mode that it is in, and follows `train()` and
    `eval()`: behind a frozen purifier it can be trained. A wrapper starts in its classifier's mode, so that tools that restore
    the mode they found (torchattacks does) leave batch norms as they were.

    Raises TypeError where the classifier cannot be called, or is a class instead of an instance; ValueError for another vote or
    fewer than 1 draw.
    """

    purifier: GuidedPurifier
    classifier: Callable[[Images], Any]

    def __init__(
        self, purifier: GuidedPurifier, classifier: Callable[[Images], Any], num_draws: int = 1, vote: Vote = "logits"
    ) -> None:
        super().__init__()
        if not callable(classifier) or isinstance(classifier, type):
            hint = f"; use {classifier.__name__}(...)" if isinstance(classifier, type) else ""
            raise TypeError(f"classifier must be a module or a callable from images to logits, got {classifier!r}{hint}")
        require_count("num_draws", num_draws)
        one_of("vote", vote, Vote)
        self.purifier = purifier
        self.classifier = classifier
        self.num_draws = num_draws
        self.vote = vote
        self.training = classifier.training if isinstance(classifier, nn.Module) else False

    def train(self, mode: bool = True) -> DefendedClassifier:
        super().train(mode)
        self.purifier.eval()  # where the classifier is its guide as well
        return self

    def extra_repr(self) -> str:
        return f"num_draws={self.num_draws}, vote={self.vote!r}"

    def forward(
        self,
        images: Images,
        *,
        ids: Ids | Sequence[int] | None = None,
        draw: int | Tensor | Sequence[int] | None = None,
        generator: torch.Generator | None = None,
    ) -> Logits:
        """Logits, float [B, classes], of `images`; `ids`, `draw` and `generator` name the purifier's noise, as in its own call.

        Raises what the purifier and the classifier raise, and ValueError where the classifier's answers are no logits
        [B, classes].
        """
        noise: dict[str, Any] = {"ids": ids, "draw": draw, "generator": generator}
        if self.num_draws == 1:
            purified = self.purifier(images, **noise).unsqueeze(0)
        else:
            purified = self.purifier(images, num_draws=self.num_draws, **noise)
        # One draw after another: the classifier needs no more memory than for the batch that it was given.
        return voted(torch.stack([self._logits(batch) for batch in purified]), self.vote)

    def twin(self, stream: str) -> DefendedClassifier:
        """The same on the purifier's twin with a noise stream of its own: attack `defended.twin("attack")`, score `defended`."""
        return DefendedClassifier(self.purifier.twin(stream), self.classifier, self.num_draws, self.vote)

    def _logits(self, images: Images) -> Logits:
        answer = self.classifier(images)
        logits = answer if isinstance(answer, Tensor) else getattr(answer, "logits", None)
        allowed = f"a module or a callable that returns float logits [{len(images)}, classes]"
        if not isinstance(logits, Tensor):
            raise ValueError(f"classifier must be {allowed}, got {type(answer).__name__}")
        ok = logits.is_floating_point() and logits.ndim == 2 and len(logits) == len(images)
        require(ok, "classifier", allowed, f"{logits.dtype} {list(logits.shape)}")
        return logits


def voted(logits: Tensor, vote: Vote) -> Logits:
    """One answer [B, classes] from those of K draws, [K, B, classes]."""
    if vote == "majority":
        return _Counts.apply(logits)
    if vote == "probabilities":
        return logits.log_softmax(-1).logsumexp(0) - math.log(len(logits))
    return logits.mean(0)


class _Counts(torch.autograd.Function):
    """How many draws answer each class. A result without history would be zeros, or an obscure error, to an attack."""

    @staticmethod
    def forward(logits: Tensor) -> Tensor:
        return nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).sum(0).to(logits.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Tensor:
        raise RuntimeError(NOT_DIFFERENTIABLE)


NOT_DIFFERENTIABLE = (
    'vote must be "logits" or "probabilities" where a gradient is asked for, got "majority": counts have none; attack '
    'purifier.defend(classifier, num_draws, vote="probabilities") and score the majority'
)
