"""Each fault that makes attacks weaker, planted in a small row whose gradient is known to be right without it."""

import dataclasses
import json

import pytest
import torch
from torch import nn

from purify_engine.config import GuidanceConfig
from purify_engine.evaluation import row_self_test as module
from purify_engine.evaluation.cells import Cell, read_cells
from purify_engine.evaluation.defences import UNGUIDED, Defence
from purify_engine.evaluation.report import best, figure
from purify_engine.evaluation.row_self_test import row_self_test, row_self_tests
from purify_engine.evaluation.self_test_said import (
    keep_self_test,
    kept_self_tests,
    self_test_facts,
    self_test_said,
    without_gradient,
)
from purify_engine.evaluation.summary import summarise
from purify_engine.evaluation.validation import read_validations
from tests.evaluation.worlds import ToyPurifier, guided

IMAGES = 0.2 + 0.6 * torch.rand(4, 1, 3, 3, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 0])
IDS = torch.tensor([7, 3, 11, 0])
COMPUTED = "in float64: a part of it is cut out, or rounds"
ATTACKED = "its gradient in the attacked precision is"


def whole(value):
    return value


def in_float32(value):
    """Detached where attacks compute, and right in the reference."""
    return value.detach() if value.dtype == torch.float32 else value


class Curved(ToyPurifier):
    """x + s x sin(mean x) + noise: the second term plays the guide. `fault` is applied to it; `names` to ids and draw."""

    def __init__(self, config, *, fault=whole, names=lambda ids, draw: (ids, draw)):
        super().__init__(config)
        self.fault, self.names = fault, names

    def configured(self, **changes):
        return Curved(dataclasses.replace(self.config, **changes), fault=self.fault, names=self.names)

    def forward(self, images, *, ids=None, draw=None):
        if ids is None:
            ids, draw = torch.zeros(len(images), dtype=torch.int64), 0
        ids, draw = self.names(ids, draw)
        noise = torch.stack([torch.randn(9, generator=torch.Generator().manual_seed(99 * int(i) + draw)) for i in ids])
        pull = self.fault(images * images.mean(dim=(1, 2, 3), keepdim=True).sin())
        pull = pull.detach() if self.config.gradient == "detached_guidance" else pull
        return images + self.config.guidance.scale * pull + 0.1 * noise.view_as(images).to(images)


class Smooth(nn.Module):
    """Three classes by a network of one hidden layer; `fault` is applied to a part of its features."""

    def __init__(self, fault=whole):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.first, self.last = (nn.Parameter(torch.randn(size, generator=generator)) for size in ((9, 6), (6, 3)))
        self.fault = fault

    def forward(self, images):
        features = (images.flatten(1) @ self.first).tanh()
        return torch.cat([features[:, :3], self.fault(features[:, 3:])], dim=1) @ self.last


class Rounding(Smooth):
    """Sees images of sixteen grey levels."""

    def forward(self, images):
        return super().forward((16 * images).round() / 16)


class Straight(torch.autograd.Function):
    """Rounds, and says that it does not."""

    @staticmethod
    def forward(ctx, value):
        return (32 * value).round() / 32

    @staticmethod
    def backward(ctx, grad):
        return grad


def seen(purifier=None, classifier=None, **settings):
    row = Defence("ours", classifier or Smooth(), purifier)
    return row_self_test(row, IMAGES, LABELS, ids=IDS, **settings)


ROWS = {"undefended": None, "DiffPure": UNGUIDED, "GDMP": GuidanceConfig(kind="pixel", scale=1.0), "ours": guided(1.0).guidance}


def purifier_of(name, **fault):
    return None if ROWS[name] is None else Curved(dataclasses.replace(guided(1.0), guidance=ROWS[name]), **fault)


@pytest.mark.parametrize("name", ROWS)
def test_a_sound_row_passes_and_says_what_it_saw(name):
    found = seen(purifier_of(name))
    assert found.passed and found.gradient == "right" and found.reasons == ()
    assert found.difference_error < 1e-6 and found.attacked_error < 1e-5 and found.rounding < 1e-5
    assert (found.zero_images, found.zero_pixels, found.precision) == (0, 0, "float32")
    assert (found.num_images, found.num_draws, found.num_directions) == (4, 1 if name == "undefended" else 2, 3)
    guides = name in ("GDMP", "ours")
    assert (found.guide_share > 0.05, found.detached_caught) == (guides, True if guides else None)
    assert (found.spread is None) == (name == "undefended")


CLASSIFIERS = {
    "a part of its features is detached": (torch.Tensor.detach, COMPUTED),
    "a part of them is detached in float32": (in_float32, ATTACKED),
    "a part of them is rounded": (Straight.apply, COMPUTED),
    "a part of them is computed in 16 bits": (lambda value: value.bfloat16().to(value), COMPUTED),
}


@pytest.mark.parametrize(("fault", "says"), CLASSIFIERS.values(), ids=CLASSIFIERS)
@pytest.mark.parametrize("name", ROWS)
def test_a_fault_in_the_classifier_is_noticed_behind_every_purifier(name, fault, says):
    found = seen(purifier_of(name), Smooth(fault))
    assert not found.passed and found.gradient == "wrong" and says in " ".join(found.reasons)


@pytest.mark.parametrize(("fault", "says"), [(torch.Tensor.detach, COMPUTED), (in_float32, ATTACKED)])
@pytest.mark.parametrize("name", ["ours", "GDMP"])
def test_a_guide_that_is_detached_is_noticed_also_where_it_is_so_in_the_attacked_precision_alone(name, fault, says):
    found = seen(purifier_of(name, fault=fault))
    assert not found.passed and found.gradient == "wrong" and says in " ".join(found.reasons)


NOISES = {
    "the same in every draw": (lambda ids, draw: (ids, 0), "two draws give the same image"),
    "the same for every image": (lambda ids, draw: (0 * ids, draw), "two ids give the same image"),
    "by the place in a batch": (lambda ids, draw: (torch.arange(len(ids)), draw), "changes with its place in the batch"),
}


@pytest.mark.parametrize(("names", "says"), NOISES.values(), ids=NOISES)
@pytest.mark.parametrize("name", ["DiffPure", "ours"])
def test_noise_is_of_the_draw_and_of_the_image_and_of_nothing_else(name, names, says):
    found = seen(purifier_of(name, names=names))
    assert not found.passed and says in found.reasons[0]


def test_fixed_noise_has_one_draw_and_must_be_fixed():
    fixed = purifier_of("ours").configured(noise="fixed")
    found = seen(fixed)
    assert found.passed and found.num_draws == 1 and found.spread is None
    counter = iter(range(100))
    found = seen(purifier_of("ours", names=lambda ids, draw: (ids, next(counter))).configured(noise="fixed"))
    assert "its noise is said to be fixed, and two draws differ" in found.reasons


@pytest.mark.parametrize("classifier", [Rounding(), nn.Sequential(Smooth(), nn.Threshold(1e9, 0.0))], ids=["rounds", "constant"])
@pytest.mark.parametrize("name", ["undefended", "ours"])
def test_where_there_is_no_gradient_that_is_said(name, classifier):
    found = seen(purifier_of(name), classifier)
    assert (found.gradient, found.passed, found.zero_images, found.zero_pixels) == ("none", False, 1, 1)
    assert found.reasons == ("it has no gradient: a part of it rounds or is detached, so attacks by gradients prove nothing",)


def test_zero_gradients_are_counted():
    """Of a classifier that does not see the lowest row of its images, and is sure beyond float32 of one image in four."""

    class Partial(Smooth):
        def forward(self, images):
            seen = torch.cat([images[:, :, :2], torch.zeros_like(images[:, :, 2:])], dim=2)
            return super().forward(seen) * torch.tensor([1e4, 1, 1, 1]).repeat(len(images) // 4).view(-1, 1).to(images)

    classifier = Partial()
    labels = classifier(IMAGES).argmax(dim=1)
    found = row_self_test(Defence("undefended", classifier), IMAGES, labels)
    assert (found.zero_images, found.zero_pixels) == (0.25, pytest.approx(1 / 3)) and found.gradient == "right"


def test_a_row_that_cannot_compute_in_float64_says_so():
    class Float(Smooth):
        def forward(self, images):
            return super().forward(images.to(self.first.dtype)).float()

    found = seen(None, Float())
    says = "it cannot be tested, as it does not compute in the dtype of its images: float64 images give logits in float32"
    assert found.reasons == (says,) and not found.passed


def test_a_chaotic_row_is_not_attacked_by_its_gradient():
    """sin(1e6 x): each float32 bit of an image turns its gradient."""
    found = seen(purifier_of("ours", fault=lambda pull: (1e6 * pull).sin()))
    assert not found.passed and any(reason.startswith("rounding alone moves its gradient") for reason in found.reasons)


def test_a_detachment_that_is_not_noticed_fails_the_test_of_the_test(monkeypatch):
    monkeypatch.setattr(module, "LEAST", (10.0, 10.0))
    found = seen(purifier_of("ours"))
    assert found.reasons == ("a guide that was detached on purpose was not noticed",) and found.detached_caught is False


def test_every_row_is_tested_and_the_lines_name_those_that_fail():
    rows = [Defence(name, Smooth(), purifier_of(name)) for name in ("undefended", "DiffPure")]
    sound = row_self_tests(rows, IMAGES, LABELS, ids=IDS)
    assert sound["passed"] and list(sound["rows"]) == ["undefended", "DiffPure"] and without_gradient(sound) == []
    assert self_test_said(sound) == ["gradient self-test passed for 2 rows"]
    found = row_self_tests([*rows, Defence("ours", Rounding(), purifier_of("ours"))], IMAGES, LABELS, ids=IDS)
    assert not found["passed"] and without_gradient(found) == ["ours"] and found["rows"]["DiffPure"]["passed"]
    first, last = self_test_said(found)
    assert first.startswith("ours: it has no gradient") and last == "gradient self-test FAILED: exact figures mean nothing"


def test_rows_keep_their_order_and_seeds_whichever_worker_is_done_first(monkeypatch):
    rows, asked = [Defence(name, Smooth(), purifier_of(name)) for name in ("undefended", "DiffPure")], []

    def backwards(work, tasks, workers):
        asked.append(workers)
        return [work(*task) for task in reversed(list(tasks))]

    alone = row_self_tests(rows, IMAGES, LABELS, ids=IDS, seed=3)
    monkeypatch.setattr(module, "shared", backwards)
    found = row_self_tests(rows, IMAGES, LABELS, ids=IDS, seed=3, workers=5)
    assert found == alone and list(found["rows"]) == ["undefended", "DiffPure"] and asked == [2]  # no more than there are rows


def test_what_was_found_stands_in_the_results_file_once(tmp_path):
    rows, results = [Defence(name, Smooth(), purifier_of(name)) for name in ("undefended", "DiffPure")], tmp_path / "cells.jsonl"
    found = row_self_tests(rows, IMAGES, LABELS, ids=IDS)
    for _ in range(2):
        keep_self_test(results, found)
    assert len(results.read_text().splitlines()) == 2 and read_cells(results) == read_validations(results) == []
    keep_self_test(results, {"passed": False, "rows": {"DiffPure": {**found["rows"]["DiffPure"], "rounding": 0.5}}})
    kept = kept_self_tests(results)
    assert kept["undefended"] == json.loads(json.dumps(found["rows"]["undefended"])) and kept["DiffPure"]["rounding"] == 0.5


def test_the_row_itself_is_left_as_it_was():
    classifier = Smooth()
    row_self_test(Defence("ours", classifier, purifier_of("ours")), IMAGES, LABELS)
    assert {parameter.dtype for parameter in classifier.parameters()} == {torch.float32}


def test_figures_of_attacks_on_a_row_without_gradient_are_marked_and_are_no_best():
    def cell(defence, attack, value, **how):
        scores = (value,) * 4
        return Cell(defence, attack, "linf" if how else "none", scores, scores, 0.0, "", {"attack": {"name": attack, **how}})

    kinds = {"exact": {"kind": "pgd"}, "square": {"kind": "square"}, "from the guide": {"kind": "pgd", "surface": "guide"}}
    shares = {"ours": 0.9, "DiffPure": 0.2}
    cells = [cell(name, attack, value, **how) for name, value in shares.items() for attack, how in kinds.items()]
    ours, other = summarise([cell("ours", "standard", 1.0), *cells], without_gradient=["ours"])
    marked = {name for name, each in ours.columns.items() if each.no_gradient}
    assert marked == {"exact", "minimum, linf"} and not any(each.no_gradient for each in other.columns.values())
    assert figure(ours.columns["exact"]).endswith(" no gradient") and "no gradient" not in figure(ours.columns["square"])
    assert best([ours, other])["exact"] == other.columns["exact"].value and best([ours, other])["square"] == 0.9


def test_a_report_tells_each_row_in_a_line():
    rows = [Defence("ours", Smooth(), purifier_of("ours")), Defence("undefended", Rounding())]
    facts = self_test_facts(row_self_tests(rows, IMAGES, LABELS, ids=IDS))
    assert list(facts) == ["passed", "ours", "undefended"] and facts["passed"] is False
    assert facts["ours"].startswith("gradient right; ") and "noticed when detached" in facts["ours"]
    assert facts["ours"].endswith("zero gradients: 0 % of images, 0 % of pixels")
    assert facts["undefended"].startswith("gradient none; it has no gradient") and "100 % of pixels" in facts["undefended"]
