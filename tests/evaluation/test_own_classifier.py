"""`module:factory`: a module of the user's own, or one line that says why not."""

import re
import sys

import pytest
import torch
from torch import nn

from purify_engine.evaluation.defences import Defence
from purify_engine.evaluation.own_classifier import OwnClassifier, is_own, own_classifier

SOURCE = """
import torch
from torch import nn

class Answer:
    def __init__(self, logits):
        self.logits = logits

class Net(nn.Module):
    class_names = ["cat", "dog", "owl"]

    def __init__(self, outputs=3):
        super().__init__()
        self.norm, self.last = nn.BatchNorm2d(1), nn.Linear(4, outputs)

    def forward(self, images):
        return self.last(self.norm(images).flatten(1))

class Wrapped(nn.Module):
    def forward(self, images):
        return Answer(images.flatten(1)[:, :2])

class factories:
    two = staticmethod(lambda: Net(2))

made = Net()
number = 3

def nothing(): return None
def broken(): raise KeyError("weights.pt")
def needs(path): return Net()
def wide(): return nn.Sequential(nn.Flatten(), nn.Linear(9, 3))
def one(): return nn.Sequential(nn.Flatten(), nn.Linear(4, 1))
def image(): return nn.Identity()
"""
IMAGES = torch.rand(2, 1, 2, 2)


@pytest.fixture(autouse=True)
def nets(tmp_path, monkeypatch):
    (tmp_path / "my_nets.py").write_text(SOURCE)
    (tmp_path / "fails.py").write_text("import no_such_package\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    yield
    for name in ("my_nets", "fails"):
        sys.modules.pop(name, None)


def test_a_module_is_made_frozen_and_asked_how_many_classes_it_has():
    own = own_classifier("my_nets:Net")
    own.require_images(IMAGES)
    assert not any(part.training for part in own.modules()) and not any(weight.requires_grad for weight in own.parameters())
    assert (own.config.num_classes, own.class_names, own.origin) == (3, ("cat", "dog", "owl"), "my_nets:Net")
    assert torch.equal(own(IMAGES), own.module(IMAGES))
    assert Defence("undefended", own).describe()["classifier"] == "my_nets:Net"
    assert "classifier" not in Defence("undefended", nn.Flatten()).describe()


def test_answers_that_hold_logits_are_logits():
    own = own_classifier("my_nets:Wrapped")
    own.require_images(IMAGES)
    assert torch.equal(own(IMAGES), IMAGES.flatten(1)[:, :2]) and (own.config.num_classes, own.class_names) == (2, None)


FACTORY = "classifier must be module:factory, an importable callable without arguments that returns an nn.Module, got "
ANSWERS = "classifier must be a classifier of images [2, 1, 2, 2] in [0, 1] that returns float logits [2, classes], got "
REFUSED = {
    "no_such:Net": FACTORY + "no_such:Net (ModuleNotFoundError: No module named 'no_such')",
    "fails:Net": FACTORY + "fails:Net (ModuleNotFoundError: No module named 'no_such_package')",
    "my_nets:Absent": FACTORY + "my_nets:Absent (AttributeError: module 'my_nets' has no attribute 'Absent'",
    "my_nets:number": FACTORY + "'my_nets:number, which is no callable but int'",
    "my_nets:made": FACTORY + "'my_nets:made, which is a module itself, not a function'",
    "my_nets:nothing": FACTORY + "'my_nets:nothing, which returns NoneType'",
    "my_nets:broken": FACTORY + "my_nets:broken (KeyError: 'weights.pt')",
    "my_nets:needs": FACTORY + "my_nets:needs (TypeError: needs() missing 1 required positional argument: 'path')",
    "my_nets:wide": ANSWERS + "my_nets:wide (RuntimeError: mat1 and mat2 shapes cannot be multiplied",
    "my_nets:image": ANSWERS + "'my_nets:image: torch.float32 [2, 1, 2, 2]'",
    "my_nets:one": "classifier must be one of 2 classes at least, got 'my_nets:one: 1'",
    "my_nets:factories.two": "class_names of the classifier must be 2 names, one an output, got ('cat', 'dog', 'owl')",
}


@pytest.mark.parametrize(("name", "says"), REFUSED.items(), ids=REFUSED)
def test_what_is_no_classifier_is_one_line(name, says):
    with pytest.raises(ValueError, match="^" + re.escape(says)) as refused:
        own_classifier(name).require_images(IMAGES)
    assert "\n" not in str(refused.value)


def test_files_folders_and_hub_ids_are_no_modules(tmp_path):
    assert is_own("my_nets:Net") and is_own("package.nets:factories.two")
    for name in ("digits", "owner/name", "folder/net.pth", "net.pth", "C:", ":Net", "my-nets:Net", "./my_nets:Net"):
        assert not is_own(name)
    (tmp_path / "my_nets:Net").write_text("a file of that name")
    assert not is_own("my_nets:Net")


def test_it_is_a_module_for_workers_to_be_sent():
    import pickle

    own = pickle.loads(pickle.dumps(OwnClassifier(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), "x:y")))
    assert own.origin == "x:y" and own(IMAGES).shape == (2, 3)
