"""DDPM++ checkpoints of score_sde: the weights are the averages, in the model's order, and the network is theirs."""

import pytest
import torch

from purify_engine.models.checkpoints.layout import shapes_of
from purify_engine.models.checkpoints.network import read_unet
from purify_engine.models.checkpoints.reading import opened
from purify_engine.models.checkpoints.registry import recognised
from purify_engine.models.checkpoints.score_sde import SCORE_SDE, unwrap
from purify_engine.models.published import DDPMPP_CIFAR10, DDPMPP_DEEP_CIFAR10
from purify_engine.testing.published import score_sde as theirs
from tests.models.checkpoints import plain_networks
from tests.models.checkpoints.translations import (
    comes_back,
    every_broken_shape_is_one_line,
    largest_difference,
    on_meta,
    our_unet,
)

GIVEN = {"image_size": 8}
X = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
TIMES = (0.0, 7.5, 99.0, 999.0)


@pytest.fixture(scope="module")
def tensors():
    return theirs.state_dict(**theirs.SMALL)


@pytest.mark.parametrize(("dtype", "most"), [(torch.float64, 1e-12), (torch.float32, 2e-5)], ids=str)
def test_the_network_is_theirs(tensors, dtype, most):
    unet = our_unet(SCORE_SDE, tensors, GIVEN, dtype)
    double = {name: tensor.double() for name, tensor in tensors.items()}
    for t in TIMES:
        labels = torch.full((2,), 999 * (t + 1) / 1000, dtype=torch.float64)  # index t is the time (t + 1) / 1000
        wanted = plain_networks.score_sde(double, X, labels, **theirs.SMALL)
        assert largest_difference(unet(X.to(dtype), torch.tensor([t])), wanted) < most


def test_a_broken_file_is_refused_in_one_line(tensors):
    assert every_broken_shape_is_one_line(SCORE_SDE, tensors, GIVEN)


def test_what_was_read_is_written_back_to_the_bit(tensors):
    assert comes_back(SCORE_SDE, our_unet(SCORE_SDE, tensors, GIVEN, torch.float32), tensors)


@pytest.mark.parametrize(
    ("network", "config", "parameters"),
    [(theirs.DDPMPP, DDPMPP_CIFAR10, 61_804_419), (theirs.DDPMPP_DEEP, DDPMPP_DEEP_CIFAR10, 106_632_579)],
    ids=["DDPM++", "deep"],
)
def test_the_published_networks_are_recognised_and_read_whole(network, config, parameters):
    assert on_meta(SCORE_SDE, theirs.state_dict(device="meta", **network)) == (config, parameters, {"sigmas"})


def test_a_network_of_discrete_time_is_stated_and_otherwise_continuous_time_is_said(tensors):
    stated = {**GIVEN, "time_offset": 0.0, "time_scale": 1.0}
    read = recognised(shapes_of(tensors), [SCORE_SDE], "a test", given=stated)
    assert (read.config.time_offset, read.config.time_scale, read.says) == (0.0, 1.0, ())
    deep = recognised(shapes_of(theirs.state_dict(device="meta", **theirs.DDPMPP_DEEP)), [SCORE_SDE], "a test")
    assert deep.config == DDPMPP_DEEP_CIFAR10 and [words.split(",")[0] for words in deep.says] == [
        "images of 32x32",
        "labels of a network trained in continuous time (999 t); one of discrete time has time_offset=0",
    ]


def test_the_averages_are_read_in_the_order_of_the_model(tensors):
    read = unwrap(theirs.training_file(tensors))
    assert list(read) == list(tensors) and list(read) != sorted(read)  # 10 comes after 2
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())


def test_an_error_of_the_averages_names_the_file(tensors, tmp_path):
    file = theirs.training_file(tensors)
    del file["ema"]["shadow_params"][3]
    torch.save(file, tmp_path / "checkpoint_8.pth")
    with pytest.raises(ValueError, match=r"checkpoint_8.pth: ema.shadow_params must be a list"):
        read_unet(opened(tmp_path / "checkpoint_8.pth"), given=GIVEN)


WRAPPINGS = {"bare": lambda t: t, "state_dict": lambda t: {"state_dict": t}, "model": lambda t: {"model": t, "step": 1}}


@pytest.mark.parametrize("wrap", WRAPPINGS.values(), ids=WRAPPINGS.keys())
@pytest.mark.parametrize("prefix", ["", "module."])
def test_tensors_without_averages_are_read_as_they_are(tensors, tmp_path, wrap, prefix):
    torch.save(wrap({prefix + name: tensor for name, tensor in tensors.items()}), tmp_path / "copied.pt")
    read = read_unet(opened(tmp_path / "copied.pt"), given=GIVEN)
    assert read.layout == "score_sde" and torch.equal(read.weights["conv_in.bias"], tensors["all_modules.2.bias"])


def test_another_number_of_averages_is_refused(tensors):
    file = theirs.training_file(tensors)
    del file["ema"]["shadow_params"][3]
    with pytest.raises(ValueError, match=r"^ema.shadow_params must be a list of the model's 154 parameters, got 153$"):
        unwrap(file)


def test_averages_of_another_order_are_refused(tensors):
    file = theirs.training_file(tensors)
    file["ema"]["shadow_params"].reverse()
    with pytest.raises(
        ValueError, match="must be in the order of the model's parameters: none for all_modules.0.weight of shape"
    ):
        unwrap(file)


@pytest.mark.parametrize(
    "content", [None, 3, {}, {"model": 3, "ema": {"shadow_params": []}}, {"ema": 2}, theirs.state_dict(**theirs.SMALL)], ids=str
)
def test_other_files_are_not_this_layouts(content):
    assert unwrap(content) is None


def without(tensors, *patterns):
    return {name: tensor for name, tensor in tensors.items() if not any(pattern in name for pattern in patterns)}


REFUSED = {
    "Fourier": (lambda t: {"all_modules.0.W": torch.zeros(32), **without(t, "all_modules.0.")}, "trained on the VE SDE"),
    "FIR": (lambda t: {**t, "all_modules.6.Conv2d_0.weight": torch.zeros(32, 3, 3, 3)}, "FIR filters"),
    "no time": (lambda t: {**t, "all_modules.0.weight": torch.zeros(32, 3, 3, 3)}, "not told the time"),
    "DDPM blocks": (lambda t: {**t, "all_modules.3.NIN_0.W": torch.zeros(32, 32)}, "the older DDPM"),
    "pyramid": (
        lambda t: {**without(t, "all_modules.4."), "all_modules.4.weight": torch.zeros(32)},
        "module 4, of a progressive",
    ),
    "gap": (lambda t: without(t, "all_modules.4."), "with gaps"),
    "no size": (lambda t: t, "image_size must be given"),
}


@pytest.mark.parametrize(("change", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_other_networks_of_score_sde_are_refused_by_name(tensors, change, reason):
    given = {} if reason.startswith("image_size") else GIVEN
    with pytest.raises(ValueError, match=reason) as error:
        recognised(shapes_of(change(tensors)), [SCORE_SDE], "a test", given=given)
    assert "\n" not in str(error.value)
