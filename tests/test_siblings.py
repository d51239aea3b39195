"""Siblings in one module are saved with their weights written once, and found again by every reader."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import nn

from tests.test_ways_to_change_weights import small


class Defended(nn.Module):
    """A purifier, its sibling, and its guide once more, as the classifier."""

    def __init__(self):
        super().__init__()
        self.defence = small()
        self.attack = self.defence.configured(gradient="bpda")
        self.classifier = self.defence.guide
        self.head = nn.Linear(2, 2)


@pytest.fixture(scope="module")
def module():
    return Defended()


@pytest.fixture
def other(module):
    """Of other weights."""
    other = copy.deepcopy(module)
    for parameter in other.parameters():
        parameter.data.mul_(3)
    return other


def assert_alike(one, other):
    assert one.defence.denoiser is one.attack.denoiser and one.defence.guide is one.classifier
    for found, expected in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(found, expected)


def test_weights_are_written_where_they_are_met_first(module):
    state = module.state_dict()
    assert {name.split(".")[0] for name in state} == {"defence", "head"}
    assert {name.removeprefix("defence.") for name in state if "defence" in name} == set(module.attack.state_dict())
    assert [name for name, _ in module.named_parameters()] == [name for name, _ in copy.deepcopy(module).named_parameters()]


def test_safetensors_writes_and_reads_them(module, other, tmp_path):
    save_file(module.state_dict(), tmp_path / "file")
    other.load_state_dict(load_file(tmp_path / "file"))
    assert_alike(other, module)


def test_safetensors_save_model_writes_and_reads_them(module, other, tmp_path):
    save_model(module, str(tmp_path / "model"))
    assert load_model(other, str(tmp_path / "model")) == (set(), [])
    assert_alike(other, module)


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("names", [("defence", "attack", "classifier"), ("attack", "classifier"), ("attack",)], ids=str)
def test_files_with_several_copies_and_with_one_by_any_name_are_read(module, other, names, assign):
    purifier = module.defence.state_dict()
    guide = {name.removeprefix("guide."): tensor for name, tensor in purifier.items() if name.startswith("guide")}
    state = {f"head.{name}": tensor for name, tensor in module.head.state_dict().items()}
    for name in names:
        state |= {f"{name}.{key}": tensor.clone() for key, tensor in (guide if name == "classifier" else purifier).items()}
    other.load_state_dict(state, assign=assign)
    assert_alike(other, module)


def test_what_is_missing_is_reported_once(module, other):
    state = module.state_dict()
    del state["defence.denoiser.unet.conv_in.weight"]
    missing, unexpected = other.load_state_dict(state, strict=False)
    assert missing == ["defence.denoiser.unet.conv_in.weight"] and unexpected == []


def test_a_purifier_alone_takes_nothing_for_granted(module):
    beside = {name.removeprefix("attack."): tensor for name, tensor in module.state_dict().items() if name.startswith("attack")}
    alone = small()
    alone.load_state_dict(alone.state_dict())  # another call, which gave it everything
    with pytest.raises(RuntimeError, match="Missing key"):
        alone.load_state_dict(beside)


def test_networks_of_equal_weights_in_memory_of_their_own_are_both_written():
    both = nn.ModuleList([small(), small()])
    assert len(both.state_dict()) == 2 * len(both[0].state_dict())
    with pytest.raises(RuntimeError, match="Missing key"):
        both.load_state_dict({name: tensor for name, tensor in both.state_dict().items() if name.startswith("0")})


def test_networks_without_memory_are_all_written():
    both = nn.ModuleList([small().to("meta"), small().to("meta")])
    assert len(both.state_dict()) == 2 * len(both[0].state_dict())
