import pickle

import pytest
import torch

from purify_engine.training.checkpoint import load_checkpoint, save_checkpoint


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    path = tmp_path / "deeper" / "unet.checkpoint"
    save_checkpoint(path, {"experiment": {"seed": 1}, "step": 7, "model": {"weight": torch.arange(3.0)}})
    state = load_checkpoint(path, {"seed": 1})
    assert state["step"] == 7 and torch.equal(state["model"]["weight"], torch.arange(3.0))


def test_another_experiment_is_refused_with_the_difference(tmp_path):
    path = tmp_path / "unet.checkpoint"
    save_checkpoint(path, {"experiment": {"seed": 1, "steps": 10}})
    with pytest.raises(ValueError, match=r"'seed': \(1, 2\)") as error:
        load_checkpoint(path, {"seed": 2, "steps": 10})
    assert "steps" not in str(error.value)


def test_a_pickle_that_runs_code_is_not_run(tmp_path):
    class Payload:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    path = tmp_path / "unet.checkpoint"
    torch.save(Payload(), path)
    with pytest.raises(pickle.UnpicklingError):
        load_checkpoint(path, {})
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("then", "now", "differs"),
    [
        ({"a": 1, "b": 2}, {"a": 1}, r"{'b': (2, None)}"),
        ({"a": 1}, {"a": 1, "b": 2}, r"{'b': (None, 2)}"),
        ({"b": 1, "a": 1, "c": 0}, {"a": 2, "b": 2, "c": 0}, r"{'a': (1, 2), 'b': (1, 2)}"),
    ],
)
def test_every_difference_is_named_once_and_nothing_else(then, now, differs, tmp_path):
    path = tmp_path / "unet.checkpoint"
    save_checkpoint(path, {"experiment": then})
    with pytest.raises(ValueError, match="resume must be") as error:
        load_checkpoint(path, now)
    assert str(error.value) == f"resume must be of the configuration that wrote unet.checkpoint (then, now), got {differs}"


def test_a_checkpoint_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_checkpoint(tmp_path / "unet.checkpoint", {})


def test_a_checkpoint_is_read_onto_the_cpu(tmp_path, monkeypatch):
    asked, load = [], torch.load
    monkeypatch.setattr(torch, "load", lambda path, **options: asked.append(options) or load(path, **options))
    save_checkpoint(tmp_path / "a.checkpoint", {"experiment": {}})
    load_checkpoint(tmp_path / "a.checkpoint", {})
    assert asked == [{"map_location": "cpu", "weights_only": True}], "one written on a GPU is resumed where there is none"
