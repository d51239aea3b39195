"""Is the gradient that attacks climb the real one, for every row of a table? Run before the attacks, and printed in the report.

A row is tested as it is attacked: purifier and classifier together, up to the margin between the true class and the next, in the
precision that attacks compute in, on several draws of its noise. A copy in float64 is the reference: its gradient must equal
central differences, and the attacked gradient must equal the copy's up to rounding. How large rounding is, is measured: by the
attacked gradient at images that differ in their last bits. A guide detached on purpose must fail that comparison where it has a
share of the gradient. Draws and images must have noise of their own, whatever their place in a batch.

The margin, because float32 rounds the gradient of a cross entropy near 0 away, which is no fault of the row.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from purify_engine import devices
from purify_engine.engine.masking import masking_is_known
from purify_engine.evaluation.defences import Defence
from purify_engine.evaluation.differences import central_differences, errors_along, normal
from purify_engine.evaluation.losses import cross_entropy, margin
from purify_engine.evaluation.workers import shared

if TYPE_CHECKING:
    from purify_engine.types import Ids, Images, Labels

SELF_TESTED = 4  # images are enough: each is looked at on several draws and in several directions
# Of differences, and the error allowed at each: fewer kinks (ReLU, clamp) lie within the smaller, whose rounding is larger.
STEPS = {1e-6: 1e-6, 1e-8: 1e-4}
ROUNDING = 10.0  # the attacked gradient may differ by so many times its measured rounding; on digits it differs by one
RELEVANT_SHARE = 0.05  # of the gradient: less of it is not looked for
LEAST = (1e-5, RELEVANT_SHARE)  # errors of the median image and of the worst that are let pass: rounding may cross a kink
ALIKE = 1e-5  # pixels that differ by less are the same, rounded
TF32_ROUNDING = 2.0**-10
RIGHT, WRONG, NONE = "right", "wrong", "none"


@dataclass(frozen=True)
class RowTest:
    """What was seen of one row. Errors are relative."""

    gradient: str
    """right, wrong, or none: zero in every pixel of every image."""
    passed: bool
    """Whether the gradient is right and the noise drawn as it should be."""
    reasons: tuple[str, ...]
    """Why it did not pass, in sentences."""
    difference_error: float | None = None
    """The float64 gradient against central differences: the worst image, its median over directions and draws."""
    attacked_error: float | None = None
    """The attacked gradient against the one in float64: the median image."""
    rounding: float | None = None
    """How far rounding moves the attacked gradient, measured: the median image."""
    guide_share: float = 0.0
    """|exact - detached| / |exact|."""
    detached_error: float | None = None
    """`attacked_error` of a guide detached on purpose."""
    detached_caught: bool | None = None
    """Whether that was noticed; None where the guide has too small a share to be."""
    zero_images: float = 0.0
    """Share of images, over draws, whose attacked gradient of the cross entropy is exactly zero."""
    zero_pixels: float = 0.0
    """Share of pixels whose attacked gradient of the margin is exactly zero."""
    spread: float | None = None
    """Root mean square difference of an image's purifications by two draws; None where nothing is random."""
    precision: str = ""
    """Of the attacked gradient."""
    num_images: int = 0
    """Images that were looked at."""
    num_draws: int = 0
    """Noise draws that each gradient was looked at on."""
    num_directions: int = 0
    """Directions of the differences."""


def row_self_tests(
    rows: Iterable[Defence], images: Images, labels: Labels, *, ids: Ids | None = None, seed: int = 0, workers: int = 1
) -> dict[str, Any]:
    """`row_self_test` of every row: {"passed": of all, "rows": {name: the fields of its RowTest}}.

    images: a few clean ones, [B, C, H, W] in [0, 1]. labels: the true ones, int64 [B]. ids: int64 [B], of their noise.
    workers: processes of one thread each that share the rows.
    """
    rows = list(rows)
    found = dict(shared(_named_self_test, ((row, images, labels, ids, seed) for row in rows), min(workers, max(1, len(rows)))))
    return {"passed": all(each["passed"] for each in found.values()), "rows": {row.name: found[row.name] for row in rows}}


def _named_self_test(row: Defence, images: Images, labels: Labels, ids: Ids | None, seed: int) -> tuple[str, dict[str, Any]]:
    return row.name, dataclasses.asdict(row_self_test(row, images, labels, ids=ids, seed=seed))


@masking_is_known()  # the suite attacks by other gradients too, and marks what is masked
def row_self_test(
    row: Defence,
    images: Images,
    labels: Labels,
    *,
    ids: Ids | None = None,
    num_draws: int = 2,
    num_directions: int = 3,
    seed: int = 0,
) -> RowTest:
    """Test the exact gradient of `row` through its classifier, in the precision that is attacked; also whose noise it draws.

    images: a few clean ones, [B, C, H, W] in [0, 1]. labels: int64 [B]. ids: int64 [B]; None: the places in the batch.
    num_draws: draws on which each gradient is looked at. num_directions: of the differences. seed: of the directions.
    """
    ids = torch.arange(len(images), device=images.device) if ids is None else ids
    attacked = _Function(row.through("exact"), labels, ids)
    images = images.clamp(0.01, 0.99)  # differences must not leave [0, 1]
    draws = range(num_draws if row.randomised else 1)
    generator = torch.Generator().manual_seed(seed)
    size = {"num_images": len(images), "num_draws": len(draws), "num_directions": num_directions}
    about: dict[str, Any] = {**size, "precision": str(images.dtype).removeprefix("torch.")}
    spread, reasons = _noise(attacked.row, images, ids)
    exact = attacked.gradients(images, draws)
    about |= {"spread": spread, **attacked.zeros(exact, images, draws)}
    try:
        double = attacked.in_float64()
        reference = double.gradients(images.double(), draws)
    except (RuntimeError, TypeError, ValueError) as error:
        said = f"it cannot be tested, as it does not compute in the dtype of its images: {error}".split("\n")[0]
        return RowTest(WRONG, False, (*reasons, said), **about)
    if not exact.any() and not reference.any():
        none = "it has no gradient: a part of it rounds or is detached, so attacks by gradients prove nothing"
        return RowTest(NONE, False, (*reasons, none), **about)
    rounding = _rounding(attacked, images, draws, exact, generator)
    differences, wrong = _differences(double, images.double(), draws, reference, num_directions, generator)
    compared, also = _compared(row, attacked, images, draws, exact, reference, rounding)
    wrong = [*wrong, *also]
    return RowTest(WRONG if wrong else RIGHT, not (wrong or reasons), (*reasons, *wrong), differences, **compared, **about)


@dataclass(frozen=True)
class _Function:
    """The margin of each image, as one row gives it at a draw."""

    row: Defence
    labels: Labels
    ids: Ids

    def logits(self, images: Images, draw: int) -> Tensor:
        """[..., B, K] of images [..., B, C, H, W]."""
        ids = self.ids.expand(images.shape[:-3]).flatten()
        logits = self.row(images.flatten(0, -4), ids, draw)
        if images.dtype == torch.float64 and logits.dtype != torch.float64:
            raise ValueError(f"float64 images give logits in {str(logits.dtype).removeprefix('torch.')}")
        return logits.view(*images.shape[:-3], -1)

    def __call__(self, images: Images, draw: int) -> Tensor:
        """[..., B]."""
        logits = self.logits(images, draw)
        labels = self.labels.expand(images.shape[:-3]).flatten()
        return margin(logits.flatten(0, -2), labels).view(images.shape[:-3])

    def gradients(self, images: Images, draws: range) -> Tensor:
        """[draws, B, C, H, W]."""
        return torch.stack([self._gradient(images, draw) for draw in draws])

    def _gradient(self, images: Images, draw: int) -> Tensor:
        leaf = images.detach().requires_grad_()
        with torch.enable_grad():
            value = self(leaf, draw).sum()
            if not value.requires_grad:  # all of it is detached
                return torch.zeros_like(images)
            found = torch.autograd.grad(value, leaf, allow_unused=True)[0]
            return torch.zeros_like(images) if found is None else found

    def in_float64(self) -> _Function:
        """A copy of the row that computes in float64."""
        purifier = None if self.row.purifier is None else copy.deepcopy(self.row.purifier).double()
        classifier = copy.deepcopy(self.row.classifier).double()
        return dataclasses.replace(self, row=dataclasses.replace(self.row, classifier=classifier, purifier=purifier))

    @torch.no_grad()
    def zeros(self, gradients: Tensor, images: Images, draws: range) -> dict[str, float]:
        """Shares of zero gradients: of images under the cross entropy, of pixels under the margin."""
        logits = torch.stack([self.logits(images, draw) for draw in draws])
        with torch.enable_grad():
            leaf = logits.flatten(0, 1).requires_grad_()
            slope = torch.autograd.grad(cross_entropy(leaf, self.labels.repeat(len(draws))).sum(), leaf)[0]
        dead = ~gradients.flatten(0, 1).flatten(1).any(dim=1) | ~slope.any(dim=1)
        return {"zero_images": float(dead.double().mean()), "zero_pixels": float((gradients == 0).double().mean())}


def _rounding(
    attacked: _Function, images: Images, draws: range, exact: Tensor, generator: torch.Generator
) -> tuple[float, float]:
    """How far the gradient moves where the images' last bits are others: the median image, the worst."""
    unit = TF32_ROUNDING if devices.tf32_in(images.device) else torch.finfo(images.dtype).eps
    moved = (images + unit * images * normal(images.shape, generator, images.device)).to(images.dtype)
    return _apart(attacked.gradients(moved, draws), exact)


def _apart(gradients: Tensor, others: Tensor) -> tuple[float, float]:
    """|difference| over |others|, an image's median over its draws: the median image, the worst."""
    gap, length = (value.double().flatten(2).norm(dim=2) for value in (gradients - others, others))
    shares = (gap / torch.maximum(length, 1e-3 * length.median()).clamp(min=1e-300)).median(dim=0).values
    return float(shares.median()), float(shares.max())


def _differences(
    double: _Function, images: Images, draws: range, reference: Tensor, count: int, generator: torch.Generator
) -> tuple[float, list[str]]:
    """How far the float64 gradient is from central differences, at the step that suits it better; and what that means."""
    directions = normal((count, *images.shape), generator, images.device)
    found = {}
    for step in STEPS:
        errors = [
            errors_along(grad, directions, central_differences(partial(double, draw=draw), images, directions, step))
            for draw, grad in zip(draws, reference, strict=True)
        ]
        found[step] = float(torch.cat(errors).median(dim=0).values.max())
        if found[step] <= STEPS[step]:
            return found[step], []
    least = min(found.values())
    return least, [f"its gradient is {least:.2g} away from finite differences in float64: a part of it is cut out, or rounds"]


def _compared(
    row: Defence,
    attacked: _Function,
    images: Images,
    draws: range,
    exact: Tensor,
    reference: Tensor,
    rounding: tuple[float, float],
) -> tuple[dict[str, Any], list[str]]:
    """The attacked gradient beside the reference, and a guide detached on purpose beside it."""
    error, wrong = _apart(exact, reference), []
    if rounding[0] > RELEVANT_SHARE:
        chaotic = "the purification is chaotic, and attacks by its gradient prove nothing"
        wrong.append(f"rounding alone moves its gradient by {rounding[0]:.2g}: {chaotic}")
    if not _agree(error, rounding):
        wrong.append(
            f"its gradient in the attacked precision is {error[1]:.2g} away from that in float64 (rounding: {rounding[1]:.2g})"
        )
    found: dict[str, Any] = {"attacked_error": error[0], "rounding": rounding[0]}
    if row.purifier is None:
        return found, wrong
    detached = dataclasses.replace(attacked, row=row.through("detached_guidance")).gradients(images, draws)
    share = float((exact - detached).double().norm() / exact.double().norm().clamp(min=1e-300))
    found |= {"guide_share": share}
    if share >= RELEVANT_SHARE:
        noticed = _apart(detached, reference)
        found |= {"detached_error": noticed[0], "detached_caught": not _agree(noticed, rounding)}
        if not found["detached_caught"]:
            wrong.append("a guide that was detached on purpose was not noticed")
    return found, wrong


def _agree(error: tuple[float, float], rounding: tuple[float, float]) -> bool:
    return all(each <= max(least, ROUNDING * own) for each, least, own in zip(error, LEAST, rounding, strict=True))


@torch.no_grad()
def _noise(row: Defence, images: Images, ids: Ids) -> tuple[float | None, list[str]]:
    """How far two draws of an image are apart, and what is wrong with whose noise is drawn."""
    if row.purifier is None:
        return None, []
    first, second = row.purify(images, ids, 0), row.purify(images, ids, 1)
    turned = row.purify(images.flip(0), ids.flip(0), 0).flip(0)
    one_image = images[:1].expand(2, *images.shape[1:])
    own, other = row.purify(one_image, torch.stack([ids[0], ids[0] + 1]), 0)
    spread = (first - second).double().square().mean().sqrt()
    wrong = []
    if (turned - first).abs().flatten(1).amax(dim=1).median() > max(ALIKE, 0.01 * float(spread)):
        wrong.append("the noise of an image changes with its place in the batch: attacks on some images see other noise")
    if not row.randomised:
        return None, wrong + (["its noise is said to be fixed, and two draws differ"] if float(spread) > ALIKE else [])
    if bool(((first - second).abs().flatten(1).amax(dim=1) <= ALIKE).any()):
        wrong.append("two draws give the same image: the noise is the same in every draw")
    if float((own - other).abs().max()) <= ALIKE:
        wrong.append("two ids give the same image: the noise is the same for every image")
    return float(spread), wrong
