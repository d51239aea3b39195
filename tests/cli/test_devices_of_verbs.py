"""Every verb that computes takes `--device`, by default auto, and computes there; what was decided reaches what it hands over."""

import inspect

import numpy as np
import pytest

from purify_engine import devices
from purify_engine.cli import train
from purify_engine.cli.bench import bench
from purify_engine.cli.demo import demo
from purify_engine.cli.doctor import doctor
from purify_engine.cli.evaluate import evaluate
from purify_engine.cli.purify import purify
from purify_engine.cli.run import main

VERBS = (purify, evaluate, bench, demo, doctor, train.diffusion, train.trades, train.classifier)
COMMANDS = {  # verb -> the words that bring it as far as its device
    "purify": ["purify", "in.npy", "out.npy"],
    "evaluate": ["evaluate"],
    "bench": ["bench"],
    "bench of a published architecture": ["bench", "--purifier", "ddpm-cifar10"],
    "demo": ["demo"],
    "doctor": ["doctor"],
    "train diffusion": ["train", "diffusion", "digits", "out"],
    "train trades": ["train", "trades", "digits", "out"],
    "train classifier": ["train", "classifier", "digits", "out"],
}


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.__name__)
def test_the_device_is_auto_unless_given(verb):
    assert inspect.signature(verb).parameters["device"].default == "auto"


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_every_verb_asks_what_its_device_is(words, command, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    np.save("in.npy", np.zeros((2, 1, 8, 8), np.float32))  # a source that is not there is refused earlier
    asked = []

    def found(device="auto"):
        asked.append(str(device))
        raise ValueError("device: far enough")

    monkeypatch.setattr(devices, "torch_device", found)
    code, _, err = command(*words)
    assert code == 2 and "device: far enough" in err and asked == ["auto"]


class FarEnoughError(Exception):
    """Raised where a verb hands over."""


@pytest.fixture
def handed_over(monkeypatch, tmp_path):
    """What purify, bench and the trainers were given first, in place of the work itself."""
    seen = []

    def hand_over(first, *words, **options):
        seen.append(first)
        raise FarEnoughError

    monkeypatch.chdir(tmp_path)
    np.save(tmp_path / "in.npy", np.zeros((2, 1, 8, 8), np.float32))
    monkeypatch.setattr("purify_engine.data.purify_dataset", hand_over)
    monkeypatch.setattr("purify_engine.benchmark.throughput.measure", hand_over)
    for kind in ("diffusion", "trades", "classifier"):
        monkeypatch.setattr(f"purify_engine.training.{kind}.train_{kind}", hand_over)
    return seen


@pytest.mark.parametrize("words", [["purify", "in.npy", "out.npy"], ["bench"]], ids=lambda words: words[0])
@pytest.mark.parametrize("precision", ["float32", "bf16", "fp16"])
def test_a_purifier_goes_where_it_is_told_in_the_precision_it_is_told(words, precision, command, handed_over):
    with pytest.raises(FarEnoughError):
        main([*words, "--device", "meta", "--precision", precision])
    tensors = handed_over[0].state_dict().values()
    assert {tensor.device.type for tensor in tensors} == {"meta"} and handed_over[0].seed.is_meta
    assert {tensor.dtype for tensor in tensors if tensor.is_floating_point()} == {devices.DTYPES[precision]}


@pytest.mark.parametrize("network", ["diffusion", "trades", "classifier"])
def test_training_happens_where_it_is_told(network, command, handed_over):
    with pytest.raises(FarEnoughError):
        main(["train", network, "digits", "out", "--device", "meta"])
    assert handed_over[0].is_meta
