"""What classifiers' files hold around their weights, and what weights do not tell: read, stated, or refused in one line."""

from __future__ import annotations

import pytest
import torch

from purify_engine.models.checkpoints import robustbench_zoo
from purify_engine.models.checkpoints.classifier import read_classifier
from purify_engine.models.checkpoints.normalisation import NORMALISATIONS
from purify_engine.testing.published import preact_resnet, robustbench, torchvision, trades

WRN = trades.wide_resnet(10, 1, 10)
DEEPMIND = robustbench.dm_wide_resnet(10, 1, 10)
PREACT = preact_resnet.state_dict((1, 1, 1, 1), 4, 10)
PREACT_NORM = preact_resnet.state_dict((1, 1, 1, 1), 4, 10, bn_before_fc=True)
IMAGENET = torchvision.state_dict((1, 1, 1, 1), 4, 1000)
BUFFERS = {"mu": torch.tensor([0.5, 0.25, 0.125]).view(1, 3, 1, 1), "sigma": torch.tensor([0.25, 0.5, 1.0]).view(1, 3, 1, 1)}


def read(held, name="weights", layout=None, **given):
    return read_classifier(held, name, f"{name}.pt", given=given, layout=layout)


def prefixed(prefix, weights):
    return {prefix + name: tensor for name, tensor in weights.items()}


WRAPPED = {
    "as it is": WRN,
    "DataParallel": prefixed("module.", WRN),
    "a dictionary of a training script": {"state_dict": WRN, "epoch": 3, "optimizer": {"state": {0: {"step": torch.ones(1)}}}},
    "kuangliu's": {"net": prefixed("module.", WRN), "acc": 95.0, "epoch": 199},
    "DiffPure's, behind a normalising layer": {"model_state_dict": prefixed("module.0.", WRN)},
    "RobustBench's normalize_model": {**prefixed("model.", WRN), "normalize.mean": torch.ones(3), "normalize.std": torch.ones(3)},
    "the robustness library's": {"model": {**prefixed("module.model.", WRN), **prefixed("module.attacker.model.", WRN)}},
    "the last and the best epoch": {"last": WRN, "best": prefixed("module.", trades.wide_resnet(10, 1, 10, seed=1))},
}


@pytest.mark.parametrize("held", WRAPPED.values(), ids=WRAPPED)
def test_weights_are_found_in_what_they_were_saved_with(held):
    found = read(held, normalisation="none")
    assert all(torch.equal(tensor, WRN[name]) for name, tensor in found.weights.items())
    assert (found.layout, found.config.mean, found.config.std) == ("trades", (0.0,) * 3, (1.0,) * 3)


@pytest.mark.parametrize(
    ("held", "reason"),
    [
        ({"state_dict": WRN, "state_dict_ema": WRN}, "must hold the weights of one network, got 'state_dict', 'state_dict_ema'"),
        ({"epoch": 3}, "must hold the weights of one network, got none"),
        ({**prefixed("branch1.", WRN), **prefixed("branch2.", WRN)}, r"must hold one network, got 2 \('branch1.', 'branch2.'\)"),
        ({**WRN, "mu": BUFFERS["mu"]}, "a file's normalisation must be one mean and one deviation, got mu"),
        ({**WRN, **BUFFERS, "sigma": -BUFFERS["sigma"]}, "the file's deviations must be positive"),
        ({"encoder.weight": torch.ones(2)}, "must have the layout trades or robustbench or preact_resnet or torchvision, got"),
        ({**WRN, "fc.weight": torch.ones(3)}, r"fc.weight must have 2 dimensions, none of them empty, got shape \(3,\)"),
        (trades.resnet((1, 2, 1, 1), 4), r"blocks of the stages must be .*, got \(1, 2, 1, 1\) basic blocks"),
        ({name: tensor for name, tensor in WRN.items() if "block3" not in name}, "three equal numbers, got .1, 1."),
        ({**IMAGENET, "layer1.0.conv2.weight": torch.ones(4, 2, 3, 3)}, "groups .ResNeXt. are not supported, got 2 channels"),
    ],
    ids=range(10),
)  # fmt: skip
def test_what_is_no_one_classifier_is_refused_in_one_line(held, reason):
    with pytest.raises(ValueError, match=reason) as error:
        read(held, normalisation="none")
    assert str(error.value).startswith("weights.pt") and "\n" not in str(error.value)


def test_a_normalisation_that_nobody_tells_is_asked_for():
    for held in (WRN, torchvision.state_dict((1, 1, 1, 1), 4, 10), robustbench.dm_wide_resnet(10, 1, 200)):
        with pytest.raises(ValueError, match=r"^weights\.pt: mean must be stated"):
            read(held)
    with pytest.raises(ValueError, match="shortcut_reads must be stated"):
        read(PREACT, normalisation="none")


@pytest.mark.parametrize(
    ("held", "name", "given", "normalisation", "says"),
    [
        (WRN, "weights", {"normalisation": "cifar10"}, NORMALISATIONS["cifar10"], "activation relu"),
        (WRN, "weights", {"mean": [0.1, 0.2, 0.3], "std": [1, 2, 3]}, ((0.1, 0.2, 0.3), (1, 2, 3)), "activation relu"),
        ({**WRN, **BUFFERS}, "weights", {}, ((0.5, 0.25, 0.125), (0.25, 0.5, 1.0)), "by the file's own 'mu', 'sigma'"),
        ({**WRN, **BUFFERS}, "Standard", {}, ((0.5, 0.25, 0.125), (0.25, 0.5, 1.0)), "by the file's own 'mu', 'sigma'"),
        ({**WRN, **BUFFERS}, "Standard", {"normalisation": "half"}, NORMALISATIONS["half"], "activation as Standard"),
        (WRN, "Standard", {}, NORMALISATIONS["none"], "normalised as Standard is in RobustBench's zoo"),
        (WRN, "Hendrycks2019Using", {}, NORMALISATIONS["half"], "normalised as Hendrycks2019Using"),
        (PREACT, "Wong2020Fast", {}, NORMALISATIONS["cifar10"], "shortcut_reads as Wong2020Fast"),
        (PREACT_NORM, "weights", {"normalisation": "none"}, NORMALISATIONS["none"], "shortcuts read a block's first activation"),
        (DEEPMIND, "weights", {}, NORMALISATIONS["cifar10"], "normalised by cifar10's mean and std, as all of this layout"),
        (DEEPMIND, "Wang2023Better_WRN-28-10", {}, NORMALISATIONS["cifar10"], "normalised as Wang2023Better_WRN-28-10"),
        (IMAGENET, "resnet50-0676ba61", {}, NORMALISATIONS["imagenet"], "normalised by ImageNet's mean and std"),
        (IMAGENET, "Chen2024Data_WRN_50_2", {}, NORMALISATIONS["none"], "normalised as Chen2024Data_WRN_50_2"),
    ],
    ids=range(13),
)  # fmt: skip
def test_what_weights_do_not_tell_is_told_in_words(held, name, given, normalisation, says):
    found = read(held, name, **given)
    assert (found.config.mean, found.config.std) == tuple(normalisation)
    assert any(says in one for one in found.says)
    assert len([one for one in found.says if "normalised" in one]) == (not given)


def test_names_of_the_zoo_tell_what_shortcuts_read_and_the_activation():
    assert read(PREACT, "Wong2020Fast").config.shortcut_reads == "input"
    assert read(PREACT_NORM, "Rice2020Overfitting").config.shortcut_reads == "activated"
    assert read(DEEPMIND, "Gowal2020Uncovering").config.activation == "silu"
    assert read(DEEPMIND, "Gowal2020Uncovering", activation="relu").config.activation == "relu"
    with pytest.raises(ValueError, match="Ding2020MMA of RobustBench's zoo is not supported: each image is normalised"):
        read(WRN, "Ding2020MMA", normalisation="none")


def test_what_is_left_out_of_a_file_is_said():
    found = read(trades.wide_resnet(10, 1, 10, sub_block1=True), normalisation="none")
    assert found.says[1:] == ("sub_block1.* is left out: the network never reads it",)
    found = read({"last": PREACT, "best": PREACT}, "Andriushchenko2020Understanding")
    assert found.says[-1] == "the weights of the last epoch, not of the best, as RobustBench"
    assert len(read(WRN, normalisation="none").says) == 1


def test_what_is_stated_must_not_contradict_the_weights():
    for wrong in ({"depth": 16}, {"architecture": "resnet"}, {"num_classes": 9}, {"downsample_padding": "asymmetric"}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be .*, as the weights have it, got"):
            read(WRN, normalisation="none", **wrong)
    one_channel = {"mean": (0,), "std": (1,)}
    for wrong in ({"mean": (0, 0, 0)}, {"normalisation": "half", "std": (1, 1, 1)}, {"normalisation": "mnist"}, one_channel):
        with pytest.raises(ValueError, match="must be"):
            read(WRN, **wrong)


def test_a_layout_can_be_named():
    assert read(WRN, layout="trades", normalisation="none").layout == "trades"
    with pytest.raises(ValueError, match="must have the layout torchvision, got a file with"):
        read(WRN, layout="torchvision", normalisation="none")
    with pytest.raises(ValueError, match="layout must be one of trades, robustbench, preact_resnet, torchvision, got 'timm'"):
        read(WRN, layout="timm", normalisation="none")


def test_a_model_of_the_zoo_is_listed_once():
    listed = [(group.layout, group.classes, name) for group in robustbench_zoo.GROUPS for name in group.names.split()]
    assert len(listed) == len(set(listed)) == len(robustbench_zoo.MODELS)
