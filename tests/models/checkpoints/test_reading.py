"""Files of every kind that is read, and of every kind that is taken for a checkpoint by mistake: one line each, nothing run."""

from __future__ import annotations

import gzip
import os
import pickle
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from purify_engine.models.checkpoints.reading import forms, is_published, opened

WEIGHTS = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2, dtype=torch.float16)}


class Bomb:
    """Unpickling this would create the folder it names."""

    def __init__(self, crater):
        self.crater = crater

    def __reduce__(self):
        return os.mkdir, (str(self.crater),)


def zipped(path, names):
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")


def tarred(path):
    inside = path.with_name("inside")
    inside.write_bytes(b"weights")
    with tarfile.open(path, "w") as archive:
        archive.add(inside, "checkpoint_8.pth")


def cut(path, share):
    torch.save(WEIGHTS, path, _use_new_zipfile_serialization=share > 0)
    os.truncate(path, int(abs(share) * path.stat().st_size))


# name -> (what writes the file, what the one line must say)
REFUSED = {
    "empty": (lambda path: path.write_bytes(b""), "is empty; copy or download it again"),
    "html": (lambda path: path.write_text("\n<!DOCTYPE html><html>Virus scan warning"), "is an HTML page: .*Google Drive"),
    "pointer": (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0"), "git lfs pull"),
    "jpeg": (lambda path: path.write_bytes(b"\xff\xd8\xff\xe0" + bytes(99)), "is a JPEG picture"),
    "gzip": (lambda path: path.write_bytes(gzip.compress(b"x" * 99)), "is a gzip archive: unpack it"),
    "tar": (tarred, "is a tar archive: unpack it"),
    "zip": (lambda path: zipped(path, ["checkpoint_8.pth"]), "that torch.save did not write: unpack it"),
    "torchscript": (lambda path: zipped(path, ["m/data.pkl", "m/constants.pkl", "m/code/m.py"]), "is a TorchScript file"),
    "flax": (lambda path: path.write_bytes(b"\x82\xa9optimizer\x81\xa6target"), "is a msgpack file .Flax"),
    "cut": (lambda path: cut(path, 0.6), "is damaged or cut short"),
    "cut legacy": (lambda path: cut(path, -0.6), "is damaged or cut short"),
    "noise": (lambda path: path.write_bytes(bytes(range(7, 107))), "is damaged, cut short, or no checkpoint"),
    "code": (lambda path: torch.save({"state_dict": Bomb(path)}, path), "holds posix.mkdir, which only running code could read"),
    "legacy code": (lambda path: torch.save(Bomb(path), path, _use_new_zipfile_serialization=False), "holds posix.mkdir"),
    "pickle": (lambda path: path.write_bytes(pickle.dumps({"ema": Bomb(path)})), "holds posix.mkdir, which only running code"),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    folder, made = tmp_path_factory.mktemp("refused"), {}
    for name, (write, _) in REFUSED.items():
        made[name] = folder / f"{name}.pth"
        write(made[name])
    return made


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_checkpoint_is_refused_in_one_line_that_names_it(files, name):
    with pytest.raises(ValueError, match=REFUSED[name][1]) as error:
        opened(files[name])
    assert str(files[name]) in str(error.value) and "\n" not in str(error.value)


AUDITED = """
import pathlib, sys
from purify_engine.models.checkpoints.reading import opened
seen, watching = [], False

def hook(event, arguments):
    writes = event == "open" and any(letter in str(arguments[1]) for letter in "wax+")
    runs = event in ("exec", "compile", "os.system", "os.exec", "os.mkdir", "os.remove", "os.rename", "subprocess.Popen")
    new = event == "import" and arguments[0] not in sys.modules
    if watching and (writes or runs or new or event.startswith(("socket.", "ctypes.", "os.spawn", "os.fork"))):
        seen.append((event, str(arguments[:2])))

sys.addaudithook(hook)
for path in sys.argv[1:]:
    watching = True
    try:
        opened(pathlib.Path(path))
        outcome = "was read"
    except ValueError:
        outcome = "refused"
    watching = False
    print(outcome, seen)
    seen.clear()
"""


def test_no_refused_file_runs_writes_imports_or_connects_anything(files):
    """Under Python's audit hook, in a process of its own; the second reading of each, as the first imports what reads it."""
    paths = [str(path) for path in files.values()]
    told = subprocess.run([sys.executable, "-c", AUDITED, *paths, *paths], capture_output=True, text=True, check=True)
    assert told.stdout.splitlines()[len(paths) :] == ["refused []"] * len(paths)


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_what_was_saved_is_read_in_every_format(tmp_path, kind):
    path = tmp_path / "weights.any"
    if kind == "safetensors":
        save_file(WEIGHTS, path)
    else:
        torch.save(WEIGHTS, path, _use_new_zipfile_serialization=kind == "zip")
    read = opened(path).content
    assert read.keys() == WEIGHTS.keys()
    assert all(torch.equal(read[name], known) and read[name].dtype == known.dtype for name, known in WEIGHTS.items())


def test_tensors_of_a_zip_are_mapped_from_the_file_and_not_copied(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"a": torch.zeros(1 << 18)}, path)
    read = opened(path).content["a"]
    assert str(path) in Path("/proc/self/maps").read_text()
    assert read.shape == (1 << 18,)


WRAPPED = {
    "plain": lambda weights: weights,
    "state_dict": lambda weights: {"state_dict": weights, "epoch": 3},
    "nested": lambda weights: {"model": {"net": weights, "name": "x"}, "optimizer": {"lr": 0.1}},
    "ema first": lambda weights: {"model": {name: value + 1 for name, value in weights.items()}, "ema": weights},
    "list": lambda weights: [{name: value + 1 for name, value in weights.items()}, {"state": {}}, 3, weights],
    "module.": lambda weights: {"state_dict": {f"module.{name}": value for name, value in weights.items()}},
    "_orig_mod.module.": lambda weights: {f"_orig_mod.module.{name}": value for name, value in weights.items()},
    "module.model.": lambda weights: {f"module.model.{name}": value for name, value in weights.items()},
}


@pytest.mark.parametrize("wrapping", WRAPPED.values(), ids=WRAPPED)
def test_the_tensors_are_found_under_every_wrapping(wrapping):
    found = [tensors for _, tensors in forms(wrapping(WEIGHTS)) if tensors.keys() == WEIGHTS.keys()]
    assert found and all(torch.equal(found[0][name], known) for name, known in WEIGHTS.items())


NO_TENSORS = [[], 3, {}, {"a": 1}, {"a": torch.zeros(2), "b": 1}, {"model": [torch.zeros(2)]}, [1, [2]]]


@pytest.mark.parametrize("content", NO_TENSORS, ids=str)
def test_what_holds_no_dictionary_of_tensors_has_no_form(content):
    assert not list(forms(content))


def test_tensors_that_have_no_values_are_no_weights():
    for value in (torch.zeros(2, device="meta"), torch.eye(2).to_sparse()):
        assert not list(forms({"a.weight": value}))


def test_of_a_folder_the_one_network_is_read_with_the_json_beside_it(tmp_path):
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "unet").mkdir()
    (tmp_path / "model_index.json").write_text("{}")
    (tmp_path / "scheduler" / "scheduler_config.json").write_text('{"beta_end": 0.02}')
    (tmp_path / "unet" / "config.json").write_text('{"sample_size": 32}')
    save_file(WEIGHTS, tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
    torch.save(Bomb(tmp_path), tmp_path / "unet" / "diffusion_pytorch_model.bin")
    for folder in (tmp_path, tmp_path / "unet"):
        held = opened(folder)
        assert is_published(folder) and held.content.keys() == WEIGHTS.keys()
        assert held.beside["config.json"] == {"sample_size": 32}
    assert opened(tmp_path).beside["scheduler_config.json"] == {"beta_end": 0.02}


def test_what_lies_beside_diffusers_weights_counts_wherever_one_points(tmp_path):
    """Else a network would be taken for google's of the same shapes, and v for the noise, without a word."""
    for folder in ("unet", "scheduler"):
        (tmp_path / folder).mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text('{"prediction_type": "v_prediction"}')
    (tmp_path / "unet" / "config.json").write_text('{"sample_size": 32}')
    weights = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    save_file(WEIGHTS, weights)
    for path in (tmp_path, tmp_path / "unet", weights):
        assert opened(path).beside.keys() == {"config.json", "scheduler_config.json"}
    assert not opened(weights.rename(tmp_path / "unet" / "mine.safetensors")).beside


def test_a_folder_without_one_network_is_refused(tmp_path):
    with pytest.raises(ValueError, match="must hold a checkpoint, a file of .* got a folder with nothing"):
        opened(tmp_path)
    for name in ("a.pth", "b.pth"):
        torch.save(WEIGHTS, tmp_path / name)
    with pytest.raises(ValueError, match="must hold one network, got a.pth, b.pth: name the file"):
        opened(tmp_path)
    with pytest.raises(FileNotFoundError, match="is not there; give the path"):
        opened(tmp_path / "absent.pth")
