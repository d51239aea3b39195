"""What holds for every layout: which of them a file has, and that each of its tensors is one of ours."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from purify_engine.models.checkpoints.layout import SAME, TRANSPOSED, Entry, Layout, as_conv1x1, stacked, translate, written
from purify_engine.models.checkpoints.registry import CLASSIFIERS, UNETS, recognised

TOY = Layout(
    "toy",
    "of the tests",
    lambda shapes, given: given.get("config", "small") if "w" in shapes else None,
    lambda config: [Entry("weight", ("w",)), Entry("bias", ("a", "b", "c"), stacked())],
    ignored=("counter*",),
)
WANTED = {"weight": (4, 2), "bias": (6,)}


def tensors(**others):
    return {"w": torch.randn(4, 2), "a": torch.ones(2), "b": torch.zeros(2), "c": torch.ones(2)} | others


def test_names_of_layouts_are_told_apart():
    names = [layout.name for layout in (*UNETS, *CLASSIFIERS)]
    assert len(set(names)) == len(names) and all(name == name.lower() and " " not in name for name in names)


@pytest.mark.parametrize("layouts", [UNETS, CLASSIFIERS], ids=["U-Nets", "classifiers"])
@pytest.mark.parametrize("shapes", [{}, {"a": ()}, {"weight": (3,)}, {f"layer.{i}.weight": (3, 3) for i in range(9)}], ids=len)
def test_a_file_that_no_layout_knows_is_refused_in_one_line(layouts, shapes):
    for layout in (None, *(known.name for known in layouts)):
        with pytest.raises(ValueError, match=r"^a\.pt") as refusal:
            recognised(shapes, layouts, "a.pt", layout=layout)
        assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 400


def test_a_file_that_two_layouts_fit_must_be_told():
    other = replace(TOY, name="other")
    with pytest.raises(ValueError, match=r"^a\.pt may be toy or other: say which by layout=$"):
        recognised({"w": (4, 2)}, [TOY, other], "a.pt")
    assert recognised({"w": (4, 2)}, [TOY, other], "a.pt", layout="other").layout is other
    assert recognised({"w": (4, 2)}, [TOY, replace(other, by_name_only=True)], "a.pt").layout is TOY


def test_an_unknown_layout_is_refused_by_name():
    with pytest.raises(ValueError, match=r"^layout must be one of toy, got 'typo'$"):
        recognised({"w": (4, 2)}, [TOY], "a.pt", layout="typo")


def test_what_is_given_reaches_the_layout():
    assert recognised({"w": (4, 2)}, [TOY], "a.pt", given={"config": "large"}).config == "large"


@pytest.mark.parametrize(
    ("harmed", "line"),
    [
        ({}, r"^a\.pt is no whole toy checkpoint: it lacks 'w'$"),
        ({name: tensor for name, tensor in tensors().items() if name != "c"}, r"^a\.pt is no whole .* lacks 'c'$"),
        (tensors(w=torch.ones(2, 4)), r"^a\.pt: 'w' must make weight of shape \(4, 2\), got \(2, 4\)$"),
        (tensors(w=torch.ones(())), r"^a\.pt: 'w' must make weight of shape \(4, 2\), got \(\)$"),
        (tensors(b=torch.ones(2, 2)), r"^a\.pt: 'a' must make bias of shape \(6,\), got \(2,\) and \(2, 2\) and \(2,\)$"),
        (tensors(extra=torch.ones(1)), r"^a\.pt holds 'extra', for which toy has no place: another network\?$"),
        (tensors(x=torch.ones(1), y=torch.ones(1)), r"^a\.pt holds 'x' and 1 more, for which toy"),
    ],
    ids=["empty", "a part lacks", "turned", "a number", "parts of two shapes", "one over", "two over"],
)
def test_a_file_that_does_not_fit_is_refused_in_one_line(harmed, line):
    with pytest.raises(ValueError, match=line) as refusal:
        translate(TOY, "small", harmed, WANTED, "a.pt")
    assert "\n" not in str(refusal.value)


def test_what_is_read_is_written_back_and_what_is_ignored_is_not():
    held = tensors(**{"counter.steps": torch.ones(1)})
    ours = translate(TOY, "small", held, WANTED, "a.pt")
    back = written(TOY, "small", ours)
    assert ours.keys() == WANTED.keys() and back.keys() == {"w", "a", "b", "c"}
    assert all(torch.equal(back[name], held[name]) for name in back)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64], ids=str)
def test_sixteen_bits_are_widened_and_nothing_else_is(dtype):
    ours = translate(TOY, "small", tensors(w=torch.ones(4, 2, dtype=dtype)), WANTED, "a.pt")
    assert ours["weight"].dtype == (torch.float32 if dtype.itemsize == 2 else dtype)


@pytest.mark.parametrize(
    ("rule", "shapes", "made"),
    [
        (SAME, [(3, 2)], (3, 2)),
        (TRANSPOSED, [(2, 3)], (3, 2, 1, 1)),
        (as_conv1x1(2), [(3, 2)], (3, 2, 1, 1)),
        (as_conv1x1(3), [(3, 2, 1)], (3, 2, 1, 1)),
        (stacked(), [(2,), (2,), (2,)], (6,)),
        (stacked(TRANSPOSED), [(2, 3), (2, 3), (2, 3)], (9, 2, 1, 1)),
    ],
    ids=["same", "transposed", "linear", "1-d convolution", "three biases", "three transposed"],
)
def test_every_rule_is_undone_by_its_reverse(rule, shapes, made):
    parts = [torch.randn(shape) for shape in shapes]
    ours = rule.read(*parts)
    assert ours.shape == made
    back = rule.write(ours)
    assert len(back) == len(parts) and all(torch.equal(one, other) for one, other in zip(back, parts, strict=True))
