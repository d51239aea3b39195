"""In which precision and layout a training computes, what is compiled, and what a resumed one says of another machine."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from purify_engine import devices
from purify_engine.config import ClassifierTraining
from purify_engine.devices import training_precision
from purify_engine.models import Classifier
from purify_engine.training.classifier import train_classifier
from purify_engine.training.computing import Computing, in_full
from tests.training.test_loop_state import IMAGES, Stop, interrupt_at, loop_in

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("flags", "expected"), [({"avx2"}, "float32"), (set(), "float32"), ({"avx512_bf16"}, "bf16"), ({"amx_bf16"}, "bf16")]
)
def test_auto_is_bf16_where_the_processor_has_instructions_for_it(flags, expected, monkeypatch):
    monkeypatch.setattr(devices, "_cpu_flags", lambda: frozenset(flags))
    assert training_precision(CPU) == expected
    assert [training_precision(CPU, asked) for asked in ("float32", "bf16")] == ["float32", "bf16"]


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), "float32"), ((8, 0), "bf16"), ((9, 0), "bf16")])
def test_auto_on_a_gpu_follows_its_compute_capability(capability, expected, monkeypatch):
    monkeypatch.setattr(devices, "_capability", lambda device: capability)
    assert training_precision(torch.device("cuda", 0)) == expected


def test_bf16_keeps_weights_and_gradients_in_float32_and_every_weight_learns(tiny_classifier):
    """Also where the network ran without gradients first, as the search of TRADES does."""
    model = Classifier(tiny_classifier)
    computing = Computing(model, ClassifierTraining(precision="bf16"))
    images = computing.laid_out(torch.rand(4, 1, 4, 4))
    with computing.autocast():
        with torch.no_grad():
            model(images)
        logits = model(images)
    assert logits.dtype == torch.bfloat16 and in_full(logits).dtype == torch.float32
    nn.functional.cross_entropy(in_full(logits), torch.arange(4) % 2).backward()
    assert all(parameter.grad is not None and parameter.grad.dtype == torch.float32 for parameter in model.parameters())
    described = computing.described()
    assert (described["precision"], described["memory_format"], described["device"]) == ("bf16", "channels_last", "cpu")


def test_float32_on_a_cpu_is_as_the_network_is(tiny_classifier):
    computing = Computing(Classifier(tiny_classifier), ClassifierTraining(precision="float32"))
    with computing.autocast():
        assert computing.model(torch.rand(2, 1, 4, 4)).dtype == torch.float32
    assert computing.described()["memory_format"] == "contiguous"
    double = torch.rand(2, 2, dtype=torch.float64)
    assert in_full(double) is double


def test_the_card_names_the_precision(tiny_classifier, stripes, tmp_path):
    config = ClassifierTraining(steps=2, batch_size=8, shift=0, report_every=1, precision="float32")
    train_classifier(*stripes, tiny_classifier, config, tmp_path)
    assert "Computed from step 0 on cpu in float32, contiguous, PyTorch" in (tmp_path / "classifier.md").read_text()


class NoCompiler(Exception):  # noqa: N818
    pass


@pytest.mark.parametrize("works", [True, False])
def test_a_network_that_cannot_be_compiled_is_trained_as_it_is_and_says_why(works, tmp_path, monkeypatch):
    compiled, straight = [], loop_in(tmp_path / "straight")
    straight.run(IMAGES, None, resume=False, progress=lambda report: None)

    def compiling(model):
        def call(*args, **kwargs):
            if not works:
                raise NoCompiler("no compiler here\nand more")
            compiled.append(1)
            return model._call_impl(*args, **kwargs)

        model._compiled_call_impl = call

    monkeypatch.setattr(nn.Module, "compile", compiling)
    loop, seen = loop_in(tmp_path / "compiled", compile=True), []
    loop.run(IMAGES, None, resume=False, progress=seen.append)
    notes = [report["note"] for report in seen if "note" in report]
    assert notes == ([] if works else ["tiny: not compiled (NoCompiler: no compiler here)"])
    assert len(compiled) == (12 if works else 0) and loop.model._compiled_call_impl is None
    assert torch.equal(loop.model.weight, straight.model.weight)


def test_what_fails_later_than_the_first_step_is_no_matter_of_compiling(tmp_path):
    loop = loop_in(tmp_path, compile=True)
    loop.computing = Computing(loop.model, replace(loop.config, compile=False))
    loop.computing.on_trial = False
    assert not loop.computing.give_up_compiling()


@pytest.mark.slow
def test_a_compiled_training_follows_the_plain_one(tiny_classifier, stripes, tmp_path):
    config, losses = ClassifierTraining(steps=3, batch_size=8, shift=0, report_every=1, precision="float32"), []
    for compiled in (False, True):
        seen = []
        train_classifier(
            *stripes, tiny_classifier, replace(config, compile=compiled), tmp_path / str(compiled), progress=seen.append
        )
        assert not [report for report in seen if "note" in report]
        losses.append([report["loss"] for report in seen if "step" in report])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)  # float32, over three steps


def test_a_run_that_goes_on_elsewhere_says_what_differs(tmp_path):
    with pytest.raises(Stop):
        loop_in(tmp_path, precision="float32").run(IMAGES, None, resume=False, progress=interrupt_at(7))
    state = torch.load(tmp_path / "tiny.checkpoint", weights_only=True)
    state["outcome"]["runs"][-1] |= {"device": "cuda", "processes": 4}
    torch.save(state, tmp_path / "tiny.checkpoint")
    loop, seen = loop_in(tmp_path, precision="float32", accumulate=5), []
    loop.run(IMAGES, None, resume=True, progress=seen.append)
    assert seen[0]["note"] == (
        "tiny: goes on at step 6 with device cpu (cuda before), processes 1 (4 before), accumulate 5 (1 before); the results "
        "differ by rounding"
    )
    assert [run["from_step"] for run in loop.outcome.runs] == [0, 6]
