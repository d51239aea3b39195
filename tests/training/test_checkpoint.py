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
