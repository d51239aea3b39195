"""Weights on disk: what was saved comes back, and every wrong file is one line that names it and says what to do."""

import errno
import os
import pickle
import resource

import pytest
import torch
from torch import nn

from purify_engine.models import load_safetensors, save_safetensors
from purify_engine.models.checkpoints import built_from_safetensors, safetensors


def network(width=4):
    return nn.Sequential(nn.Conv2d(1, width, 3), nn.BatchNorm2d(width))


class Bomb:
    """Unpickling this would create the file it names."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "weights" / "net.safetensors"
    save_safetensors(network(), path)
    return path


def one_line(error, path):
    message = str(error.value)
    assert str(path) in message and "\n" not in message
    return message


def test_what_was_saved_comes_back_bit_for_bit(tmp_path):
    first, second, path = network(), network(), tmp_path / "net.safetensors"
    first[1].running_mean.normal_()
    save_safetensors(first, path)
    assert load_safetensors(second, path) is second
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True))
    assert [file.name for file in tmp_path.iterdir()] == ["net.safetensors"]  # nothing left beside it


def test_weights_take_the_dtype_of_the_network(saved):
    assert load_safetensors(network().double(), saved)[0].weight.dtype == torch.float64


@pytest.mark.parametrize("portion", [1, 20, 2**26])
def test_a_network_is_built_with_the_weights_of_a_file(saved, monkeypatch, portion):
    """No number is drawn, and nothing of it changes or is lost where the file does, even in place."""
    monkeypatch.setattr(safetensors, "PORTION", portion)
    expected, before = load_safetensors(network(), saved).state_dict(), torch.get_rng_state()
    built = built_from_safetensors(network, saved)
    assert torch.equal(torch.get_rng_state(), before)
    saved.write_bytes(b"\xff" * saved.stat().st_size)  # NaN in every place, written over the same pages
    assert built.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in built.state_dict().items())
    assert built[0].weight.requires_grad and not built[1].running_mean.requires_grad


def test_a_network_is_built_in_the_dtype_that_is_asked_for(saved):
    exact = load_safetensors(network(), saved)
    built = built_from_safetensors(network, saved, torch.bfloat16)
    assert torch.equal(built[0].weight, exact[0].weight.bfloat16())
    assert built[1].num_batches_tracked.dtype == torch.int64


def test_weights_of_another_network_build_none(saved):
    with pytest.raises(ValueError, match=r"0.weight must be \(5, 1, 3, 3\), got \(4, 1, 3, 3\)") as error:
        built_from_safetensors(lambda: network(width=5), saved)
    one_line(error, saved)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        load_safetensors(network(), tmp_path / "absent.safetensors")
    assert "give the path" in one_line(error, tmp_path / "absent.safetensors")


def test_a_file_cut_anywhere_is_refused(saved):
    whole = saved.read_bytes()
    for length in (0, 1, 7, 8, 9, 100, len(whole) // 2, len(whole) - 1):
        saved.write_bytes(whole[:length])
        with pytest.raises(ValueError) as error:
            load_safetensors(network(), saved)
        assert "again" in one_line(error, saved)


@pytest.mark.parametrize("zipped", [True, False], ids=["torch.save", "pickle"])
@pytest.mark.parametrize("name", ["net.pt", "net.safetensors"])
def test_a_pickle_is_refused_and_never_run(tmp_path, zipped, name):
    path, crater = tmp_path / name, tmp_path / "crater"
    if zipped:
        torch.save(Bomb(crater), path)
    else:
        path.write_bytes(pickle.dumps(Bomb(crater)))
    with pytest.raises(ValueError) as error:
        load_safetensors(network(), path)
    assert "pickle" in one_line(error, path) and "convert" in str(error.value)
    assert not crater.exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_of_any_protocol_is_refused(tmp_path, protocol):
    path, crater = tmp_path / "net.safetensors", tmp_path / "crater"
    path.write_bytes(pickle.dumps(Bomb(crater), protocol=protocol))
    with pytest.raises(ValueError) as error:
        load_safetensors(network(), path)
    one_line(error, path)
    assert not crater.exists()


def test_weights_of_another_width_are_refused_and_change_nothing(saved):
    other = network(width=5)
    before = other[0].weight.clone()
    with pytest.raises(ValueError) as error:
        load_safetensors(other, saved)
    assert "0.weight must be (5, 1, 3, 3), got (4, 1, 3, 3)" in one_line(error, saved)
    assert torch.equal(other[0].weight, before)


def test_missing_and_unknown_names_are_told(saved):
    with pytest.raises(ValueError) as error:
        load_safetensors(nn.Sequential(*network(), nn.Conv2d(4, 4, 1)), saved)
    assert "lacks '2.weight' and 1 more" in one_line(error, saved)
    with pytest.raises(ValueError) as error:
        load_safetensors(network()[:1], saved)
    assert "unknown '1.bias' and 4 more" in one_line(error, saved)


def test_integers_in_place_of_weights_are_refused(saved):
    saved.write_bytes(saved.read_bytes().replace(b'"F32"', b'"I32"'))
    with pytest.raises(ValueError) as error:
        load_safetensors(network(), saved)
    assert "must be torch.float32, got I32" in one_line(error, saved)


def test_weights_without_batch_norm_counters_are_accepted(tmp_path):
    """Weights converted from other frameworks carry none, and nothing here reads them."""
    from safetensors.torch import save_file

    path = tmp_path / "net.safetensors"
    save_file({name: tensor for name, tensor in network().state_dict().items() if not name.endswith("num_batches_tracked")}, path)
    load_safetensors(network(), path)


def test_no_mutated_header_does_anything_but_raise_one_line(saved):
    """Five hundred damaged headers: each loads or raises a ValueError of one line."""
    whole, generator = saved.read_bytes(), torch.Generator().manual_seed(0)
    header = 8 + int.from_bytes(whole[:8], "little")
    target, refused = network(), 0
    for _ in range(500):
        mutated = bytearray(whole)
        for position, value in torch.randint(0, header, (3, 2), generator=generator).tolist():
            mutated[position] = value % 256
        saved.write_bytes(mutated)
        try:
            load_safetensors(target, saved)
        except ValueError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 450


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=str)
def test_weights_of_any_layout_are_saved(tmp_path, layout):
    """safetensors refuses what is not contiguous, and networks for a GPU are channels_last."""
    first, second, path = network(8).to(memory_format=layout), network(8), tmp_path / "net.safetensors"
    first[0].weight.data = torch.randn(8, 1, 3, 3).permute(0, 1, 3, 2)  # in no layout that has a name
    save_safetensors(first, path)
    load_safetensors(second, path)
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True))


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640)], ids=oct)
def test_weights_may_be_read_by_whom_the_umask_lets(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        save_safetensors(network(), tmp_path / "net.safetensors")
    finally:
        os.umask(before)
    assert (tmp_path / "net.safetensors").stat().st_mode & 0o777 == mode


def test_a_save_that_fails_leaves_the_weights_that_were_there(saved, monkeypatch):
    whole = saved.read_bytes()
    with pytest.raises(RuntimeError):  # two names for one storage: safetensors refuses it
        twice = network()
        twice.register_buffer("again", twice[0].weight.data)
        twice[0].weight.data = twice.again
        save_safetensors(twice, saved)
    assert saved.read_bytes() == whole
    assert [file.name for file in saved.parent.iterdir()] == [saved.name]


def test_a_full_disk_is_an_error_of_the_disk_and_leaves_nothing(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # no file of more bytes
    try:
        with pytest.raises(OSError) as error:
            save_safetensors(torch.nn.Linear(32, 32), tmp_path / "a.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert error.value.errno == errno.EFBIG and error.value.filename == str(tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())
