"""Small defences whose best attack is known."""

from __future__ import annotations

import functools
import zlib

import torch
from torch import Tensor, nn

from purify_engine.config import AttackConfig, EvaluationConfig, GuidanceConfig, PurifierConfig
from purify_engine.evaluation.defences import Defence
from purify_engine.evaluation.suite import CLEAN, EXACT, TRANSFERRED

CONFIG = EvaluationConfig(num_draws=5, num_steps=4, num_eot=2, num_queries=6)
ATTACKS = (
    CLEAN,
    AttackConfig(name=EXACT, epsilon=0.02, num_steps=5, num_eot=2),
    AttackConfig(name=TRANSFERRED, epsilon=0.02, gradient="blind"),
)


class Linear(nn.Module):
    """Two classes by the sign of <w, x> + b; the optimal perturbations are epsilon sign(w) and epsilon w / |w|."""

    def __init__(self, weight: Tensor, bias: float = 0.0) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.bias = bias

    def forward(self, images: Tensor) -> Tensor:
        score = (images * self.weight).flatten(1).sum(dim=1) + self.bias
        return torch.stack([-score, score], dim=1)

    def features_and_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return images.flatten(1), self(images)


class ToyPurifier(nn.Module):
    """Adds a little noise, numbered by draw. Its `exact` gradient is the truth, or, with `masked=True`, noise instead of it."""

    def __init__(self, config: PurifierConfig | None = None, *, spread: float = 0.01, masked: bool = False) -> None:
        super().__init__()
        self.config = config or PurifierConfig(t_star=10)
        self.spread, self.masked = spread, masked
        self.guide: nn.Module | None = None
        self.draws: list[int] = []
        self.stream = ""

    def twin(self, stream) -> ToyPurifier:
        sibling = self.configured()
        sibling.stream = stream
        return sibling

    def configured(self, **changes) -> ToyPurifier:
        sibling = ToyPurifier(
            type(self.config)(**{**vars(self.config), **changes}), spread=self.spread, masked=self.masked
        )
        sibling.draws, sibling.guide = self.draws, self.guide
        return sibling

    def forward(self, images: Tensor, *, ids: Tensor | None = None, draw: int | Tensor | None = None) -> Tensor:
        if self.config.noise == "fixed":
            ids, draw = torch.zeros(len(images), dtype=torch.int64), 0
        else:
            assert ids is not None and draw is not None
        self.draws += [draw] if isinstance(draw, int) else list(dict.fromkeys(draw.tolist()))
        drawn = [draw] * len(ids) if isinstance(draw, int) else draw.tolist()
        apart = zlib.crc32(self.stream.encode()) << 31
        places = zip(drawn, ids.tolist(), strict=True)
        noise = torch.stack([self.noise(number + apart, images.shape[1:])[i] for number, i in places]).to(images)
        value = images + self.spread * noise
        if self.masked and self.config.gradient == "exact":
            return value.detach() + (images - images.detach()) * noise.sign()
        return value

    @staticmethod
    @functools.cache
    def noise(draw: int, shape: tuple[int, ...]) -> Tensor:
        """Of 64 ids."""
        return torch.randn(64, *shape, generator=torch.Generator().manual_seed(draw))

    def calibrate(self, images: Tensor, ratio: float) -> float:
        return 10 * ratio


class QuadraticPurifier(ToyPurifier):
    """x + s x (mean of x): a smooth map whose second term plays the guide; `detached_guidance` leaves its gradient out."""

    def configured(self, **changes) -> QuadraticPurifier:
        return QuadraticPurifier(type(self.config)(**{**vars(self.config), **changes}))

    def forward(self, images: Tensor, *, ids: Tensor | None = None, draw: int | None = None) -> Tensor:
        scale = self.config.guidance.scale
        pull = images * images.mean(dim=(1, 2, 3), keepdim=True)
        return images + scale * (pull.detach() if self.config.gradient == "detached_guidance" else pull)


def guided(scale: float) -> PurifierConfig:
    return PurifierConfig(t_star=10, guidance=GuidanceConfig(scale=scale))


def linear_world(count: int = 6) -> tuple[Linear, Tensor, Tensor]:
    """A linear classifier, images well inside [0, 1] and their labels under it."""
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(1, 4, 4, generator=generator)
    images = 0.35 + 0.3 * torch.rand(count, 1, 4, 4, generator=generator)
    classifier = Linear(weight, -0.5 * float(weight.sum()))
    return classifier, images, classifier(images).argmax(dim=1)


def toy(**settings) -> tuple[Defence, Tensor, Tensor]:
    """A linear classifier behind a purifier that adds noise, guided by the classifier itself; forty images."""
    classifier, images, labels = linear_world(40)
    return Defence("toy", classifier, ToyPurifier(guided(1.0), **settings), guide=classifier), images, labels
