"""The examples of docs/noise.md, run as they stand: on digits, with an attack of one step."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from purify_engine import GuidedPurifier, load_classifier

PAGE = Path(__file__).parents[1] / "docs" / "noise.md"


def one_step(model, x, labels):
    """The fast gradient sign method (Goodfellow et al. 2015)."""
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(torch.nn.functional.cross_entropy(model(leaf), labels), leaf)
    return (x + 0.1 * grad.sign()).clamp(0, 1)


def test_the_examples_run_and_say_what_they_promise():
    examples = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.S)
    x = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    world = {
        "GuidedPurifier": GuidedPurifier, "torch": torch, "classifier": load_classifier("digits"), "x": x, "batch": x,
        "labels": torch.tensor([0, 1, 2]), "numbers": torch.tensor([10, 11, 12]), "attack": one_step, "best_seed": 4,
    }  # fmt: skip
    before = torch.get_rng_state()
    for example in examples:
        with torch.random.fork_rng():
            exec(example, world)
    assert len(examples) == 7 and torch.equal(torch.get_rng_state(), before)
    purifier = world["purifier"]
    assert torch.allclose(world["clean"][1:], purifier(x[1:], ids=[11, 12]), atol=1e-5)
    assert world["logits"].shape == (16, 3, 10) and torch.isfinite(world["loss"])
    assert torch.equal(world["fixed"](x), world["fixed"](x))
    assert torch.allclose(world["again"][[1]], purifier(x[[1]], ids=[11], draw=17), atol=1e-5)
