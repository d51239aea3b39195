"""Every published layout from a file in its own wrapping to a purifier: converted, loaded, saved again, the same network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from purify_engine import GuidedPurifier, load_classifier
from purify_engine.conversion import Stated, convert
from purify_engine.models import Classifier
from purify_engine.models.checkpoints import registry
from purify_engine.models.checkpoints.classifier import read_classifier
from purify_engine.models.checkpoints.diffusers_unet import unet_config
from purify_engine.testing.published import (
    diffusers,
    edm,
    edm_pickle,
    guided_diffusion,
    pesser,
    preact_resnet,
    robustbench,
    score_sde,
    torchvision,
    trades,
)
from tests.models.checkpoints.translations import our_unet

Tensors = dict[str, torch.Tensor]


class Case(NamedTuple):
    """A small checkpoint: its tensors, what a file holds around them, and what is stated of the network."""

    layout: str
    tensors: Callable[[], Tensors]
    wrapped: Callable[[Tensors], Any]
    stated: dict[str, Any] = {}
    write: Callable[[Any, Path], object] = torch.save
    beside: dict[str, Any] = {}  # what a folder says of the network


ADM = guided_diffusion.Flags(image_size=8, num_channels=32, num_res_blocks=1, channel_mult=(1, 2), attention_resolutions=(4,))
NEW_ORDER = "guided-diffusion-new-order"
SIZE = {"image_size": 8}
SMALL, OURS = diffusers.SMALL, vars(unet_config(diffusers.SMALL))
UNETS = {
    "guided-diffusion": Case("guided-diffusion", lambda: guided_diffusion.state_dict(ADM), dict, {**SIZE, "num_heads": 4}),
    "in fp16": Case(
        "guided-diffusion", lambda: guided_diffusion.in_fp16(guided_diffusion.state_dict(ADM)), dict, {**SIZE, "num_heads": 4}
    ),
    "in the new order": Case(NEW_ORDER, lambda: guided_diffusion.state_dict(ADM), dict, {**SIZE, "num_heads": 4}),
    "checkpoint_8": Case("score_sde", lambda: score_sde.state_dict(**score_sde.SMALL), score_sde.training_file, SIZE),
    "pesser's averages": Case(
        "pesser", lambda: pesser.state_dict(**pesser.SMALL), lambda t: [{n: v + 1 for n, v in t.items()}, {}, 1, 2, t], SIZE
    ),
    "a pickle of EDM": Case(
        "edm", lambda: edm.state_dict(**edm.SMALL), dict, {}, lambda t, path: path.write_bytes(edm_pickle.pickled(t))
    ),
    "a network's folder": Case(
        "diffusers", lambda: diffusers.state_dict(SMALL), dict, {}, lambda _, path: diffusers.save(path, SMALL), OURS
    ),
    "an old pipeline": Case(
        "diffusers-old",
        lambda: diffusers.state_dict(SMALL, old_names=True),
        dict,
        {},
        lambda _, path: diffusers.save(path, SMALL, diffusers.SCHEDULER, pipeline=True, pickled=True, old_names=True),
        OURS,
    ),
}
NORMALISED = {"normalisation": "cifar10"}
CLASSIFIERS = {
    "TRADES": Case("trades", lambda: trades.wide_resnet(10, 1, 10), dict, NORMALISED),
    "DataParallel": Case(
        "robustbench",
        lambda: robustbench.dm_wide_resnet(10, 1, 10),
        lambda t: {"model_state_dict": {f"module.{name}": value for name, value in t.items()}},
        NORMALISED,
    ),
    "kuangliu": Case(
        "preact_resnet",
        lambda: preact_resnet.state_dict((1, 1, 1, 1), 4, 10),
        lambda t: {"net": t, "acc": 95.0},
        {**NORMALISED, "shortcut_reads": "activated"},
    ),
    "torchvision": Case("torchvision", lambda: torchvision.state_dict((1, 1, 1, 1), 4, 10), dict, {"normalisation": "imagenet"}),
}
X = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
TIMES = torch.tensor([3, 70])


def saved(case, path):
    tensors = case.tensors()
    case.write(case.wrapped(tensors), path)
    return tensors


def named(layout):
    (known,) = registry.named(registry.UNETS, layout)
    return replace(known, by_name_only=False)


@pytest.mark.parametrize("case", UNETS.values(), ids=UNETS)
def test_a_diffusion_model_of_every_layout_purifies(case, tmp_path, caplog):
    tensors = saved(case, tmp_path / "weights.pt")
    stated = Stated(unet=case.stated, layout=case.layout if case.layout == NEW_ORDER else None)
    made = convert(tmp_path / "weights.pt", tmp_path / "out", stated=stated)
    assert made.networks["unet"].layout == case.layout
    loaded = GuidedPurifier.from_pretrained(tmp_path / "out")
    loaded.save_pretrained(tmp_path / "again")
    again = GuidedPurifier.from_pretrained(tmp_path / "again")
    parts = GuidedPurifier.from_checkpoint(tmp_path / "weights.pt", layout=stated.layout, network=case.stated)
    assert caplog.messages == [f"weights.pt as unet: {said}" for said in made.networks["unet"].says]
    wanted = our_unet(named(case.layout), tensors, {**case.beside, **case.stated}, torch.float32)(X, TIMES)
    for purifier in (loaded, again, parts):
        assert torch.equal(purifier.denoiser.unet(X, TIMES), wanted) and purifier.config == loaded.config
    short = loaded.configured(t_star=1, noise="fixed")
    assert short(X).shape == X.shape and not torch.equal(short(X), X)


@pytest.mark.parametrize("case", CLASSIFIERS.values(), ids=CLASSIFIERS)
def test_a_classifier_of_every_layout_classifies(case, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tensors = saved(case, tmp_path / "weights.pt")
    made = convert(tmp_path / "weights.pt", tmp_path / "out", stated=Stated(classifier=case.stated))
    assert made.networks["classifier"].layout == case.layout
    read = read_classifier(tensors, "weights", "a test", given=case.stated)
    wanted = Classifier(read.config).eval().requires_grad_(False)
    wanted.load_state_dict(read.weights, strict=False)
    for classifier in (load_classifier(tmp_path / "out"), load_classifier(tmp_path / "weights.pt", **case.stated)):
        assert torch.equal(classifier(X), wanted(X))
    load_classifier(tmp_path / "weights.pt", **case.stated)  # out of the cache, and said again
    assert caplog.messages == 2 * [f"weights.pt as classifier: {said}" for said in made.networks["classifier"].says]


def test_every_registered_layout_has_a_case():
    layouts = {known.name for known in (*registry.UNETS, *registry.CLASSIFIERS)}
    assert {case.layout for case in (*UNETS.values(), *CLASSIFIERS.values())} == layouts
