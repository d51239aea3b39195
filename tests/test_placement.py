"""`purify_engine.devices`: what "auto" means, what is refused, what a record says; a GPU is what PyTorch says of one."""

import re
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from purify_engine import GuidedPurifier, devices
from purify_engine.devices import computing, described, dtype_on, place, tf32_in, torch_device, without_tf32

CPU, GPU = torch.device("cpu"), torch.device("cuda", 1)


@pytest.fixture
def gpus(monkeypatch):
    """A function: from then on PyTorch speaks of GPUs of that compute capability, the second of them the current one."""

    def found(*capability):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "a GPU")

    return found


class ThoughtOn(nn.Module):
    """A module whose parameters say that they are on a device, where none is at hand."""

    def __init__(self, device, dtype, layout=torch.contiguous_format):
        super().__init__()
        weight = torch.zeros(4, 4, 3, 3, dtype=dtype).contiguous(memory_format=layout)
        says = {"dtype": dtype, "device": device, "is_cuda": device.type == "cuda"}
        self.found = [SimpleNamespace(**says, dim=weight.dim, is_contiguous=weight.is_contiguous)]

    def parameters(self, recurse=True):
        return iter(self.found)


def test_auto_is_the_cpu_in_float32_where_there_is_no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert torch_device() == CPU and dtype_on(CPU) == torch.float32


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (8, 9), (9, 0)])
def test_auto_is_the_current_gpu_and_bf16_where_it_has_that(capability, gpus):
    gpus(*capability)
    assert torch_device("auto") == GPU
    assert dtype_on(GPU) == (torch.float32 if capability == (7, 5) else torch.bfloat16)


def test_a_precision_that_is_asked_for_is_taken_on_every_device(gpus):
    gpus(7, 5)
    for where in (CPU, GPU):
        assert [dtype_on(where, name) for name in devices.DTYPES] == [torch.float32, torch.bfloat16, torch.float16]
    with pytest.raises(ValueError, match="^precision must be one of auto, float32, bf16, fp16, got 'int4'$"):
        dtype_on(CPU, "int4")


def test_devices_that_are_there_are_given_back_and_others_refused_by_their_names():
    assert torch_device("cpu") == CPU and torch_device("meta") == torch.device("meta")
    for name in ("cuda:99", "nonsense"):
        says = f"device must be one that PyTorch {torch.__version__} finds here, got '{name}'"
        with pytest.raises(ValueError, match=f"^{re.escape(says)}$"):
            torch_device(name)


def test_a_device_without_float64_is_refused_before_anything_is_loaded_and_in_a_call(monkeypatch):
    with pytest.raises(ValueError, match="^device must be one with float64, .* got 'mps'$"):
        GuidedPurifier.from_pretrained("absent", device="mps")
    purifier = GuidedPurifier.from_pretrained("digits", device="meta")
    monkeypatch.setattr(devices, "NO_FLOAT64", ("meta",))  # as where a user's own .to("mps") brought it there
    with pytest.raises(ValueError, match="^device must be one with float64, .* got 'meta'$"):
        purifier(torch.rand(2, 1, 8, 8, device="meta"))


@pytest.mark.parametrize("precision", ["float32", "bf16", "fp16"])
def test_a_purifier_is_placed_and_says_so(precision):
    purifier = GuidedPurifier.from_pretrained("digits", device="cpu", precision=precision)
    parameters = list(purifier.parameters())
    assert {parameter.dtype for parameter in parameters} == {devices.DTYPES[precision]} and purifier.seed.dtype == torch.int64
    last = precision != "float32"
    filters = [weight for weight in parameters if weight.dim() == 4]
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in filters) or not last
    assert described(purifier.denoiser) == f"on cpu in {precision}" + (", channels_last" if last else "")
    assert f", on cpu in {precision}" in repr(purifier)
    expected = {"device": "cpu", "precision": precision, "gpu": None, "tf32": []}
    assert computing(purifier) == {**expected, "memory_format": "channels_last" if last else "contiguous"}


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_sixteen_bits_purify_on_a_cpu_to_their_rounding(precision):
    images, ids = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(2)
    with torch.no_grad():
        whole = GuidedPurifier.from_pretrained("digits")(images, ids=ids)
        short = GuidedPurifier.from_pretrained("digits", precision=precision)(images, ids=ids)
    assert short.dtype == torch.float32 and 0 < (whole - short).abs().mean() < 0.02  # two thousandths in bf16


def test_a_records_gpu_is_named_and_its_tf32(gpus, monkeypatch):
    gpus(8, 0)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)  # PyTorch's default, whatever ran before
    low = ThoughtOn(GPU, torch.bfloat16, torch.channels_last)
    assert computing(low) == {
        "device": "cuda:1", "precision": "bf16", "memory_format": "channels_last", "gpu": "a GPU", "tf32": []
    }  # fmt: skip
    assert described(low) == "on cuda:1 in bf16, channels_last"
    whole = ThoughtOn(GPU, torch.float32)
    assert computing(whole)["tf32"] == ["convolutions"]
    assert described(whole) == "on cuda:1 in float32, TF32 in convolutions"
    with without_tf32():
        assert computing(whole)["tf32"] == [] and described(whole) == "on cuda:1 in float32"
    assert tf32_in(GPU) == ["convolutions"] and tf32_in(CPU) == []


def test_tf32_is_told_as_it_is_set_and_older_gpus_have_none(gpus):
    settings, name, on, _ = devices._tf32_settings()
    before = [getattr(setting, name) for setting in settings.values()]
    with without_tf32():  # which puts everything back
        gpus(9, 0)
        setattr(settings["matrix products"], name, on)
        assert tf32_in(GPU) == ["matrix products"]
        setattr(settings["convolutions"], name, on)
        assert tf32_in(GPU) == ["convolutions", "matrix products"]
        gpus(7, 5)
        assert tf32_in(GPU) == []
    assert [getattr(setting, name) for setting in settings.values()] == before


def test_placing_gives_back_the_module_itself():
    layer = nn.Conv2d(4, 4, 3)
    assert place(layer, "cpu", "bf16") is layer and layer.weight.dtype == torch.bfloat16
