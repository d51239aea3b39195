"""Every writer of purify_engine.training through tests/crash_safety.py."""

import pytest
import torch

from purify_engine.config import ClassifierConfig, ClassifierTraining
from purify_engine.training.checkpoint import save_checkpoint
from purify_engine.training.model_card import ModelCard, publish
from purify_engine.training.record import TrainingSet
from tests.crash_safety import (
    assert_durable_in_the_end,
    assert_failure_leaves_what_was_there,
    assert_umask_decides_who_may_read,
    to,
)

CARD = ModelCard(
    name="a", title="", what="", data=TrainingSet(source="", images=1, shape=(1,), sha256=""), parameters=1,
    network=ClassifierConfig(), config=ClassifierTraining(), figures={}, use="", limits="",
)  # fmt: skip

WRITERS = {
    "checkpoint": to("a.checkpoint", lambda path: save_checkpoint(path, {"experiment": {}})),
    "card": to("a.md", lambda path: publish(torch.nn.Linear(2, 2), CARD, path.parent)),
    "weights": to("a.safetensors", lambda path: publish(torch.nn.Linear(2, 2), CARD, path.parent)),
}


every_writer = pytest.mark.parametrize("name", WRITERS)


@every_writer
def test_it_appears_by_a_rename_and_the_disk_has_it_in_the_end(name, tmp_path, disk_calls):
    assert_durable_in_the_end(WRITERS[name], tmp_path, disk_calls)


@every_writer
@pytest.mark.parametrize("old", [None, "old"], ids=["no file before", "a file before"])
def test_a_failure_leaves_what_was_there(name, old, tmp_path, monkeypatch):
    assert_failure_leaves_what_was_there(WRITERS[name], tmp_path, old, monkeypatch)


@every_writer
def test_it_may_be_read_by_whom_the_umask_lets(name, tmp_path):
    assert_umask_decides_who_may_read(WRITERS[name], tmp_path)
