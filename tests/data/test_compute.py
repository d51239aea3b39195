"""Batches on their way to a purifier and back: on this machine, and in which order beside a GPU's work."""

import contextlib
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from purify_engine.data import compute
from purify_engine.data.compute import PurifierCompute, SideStreams

IDS = np.array([5, 7], dtype=np.int64)


class Halving(nn.Module):
    """Halves images, and adds their ids."""

    def forward(self, images, *, ids):
        assert images.dtype == torch.float32 and ids.dtype == torch.int64
        return (images / 2 + ids[:, None, None, None]).double()


def test_levels_and_numbers_come_back_as_float32_in_unit_range():
    levels = np.arange(2 * 1 * 2 * 2, dtype=np.uint8).reshape(2, 1, 2, 2) * 36
    for images in (levels, levels / np.float32(255)):
        here = PurifierCompute(Halving())
        purified = here.finish(here.start(images, IDS))
        expected = levels / np.float32(255) / 2 + IDS[:, None, None, None]
        assert purified.dtype == np.float32 and np.array_equal(purified, expected.astype(np.float32))


class Recorder:
    """A stream or an event that notes what is asked of it."""

    def __init__(self, name, log):
        self.name, self.log = name, log

    def wait_stream(self, other):
        self.log.append(f"{self.name} waits for {other.name}")

    def record(self, stream):
        self.log.append(f"event on {stream.name}")

    def synchronize(self):
        self.log.append("host waits for the event")


@pytest.fixture
def gpu(monkeypatch):
    """A GPU that is this machine's memory, and what is asked of its streams, in order."""
    log, names = [], iter(["to", "fro"])
    current = [Recorder("purifying", log)]

    @contextlib.contextmanager
    def on(stream):
        current.append(stream)
        yield
        current.pop()

    def copied(tensor, *args, non_blocking=False):
        assert non_blocking
        log.append(f"copy on {current[-1].name}")
        return tensor

    def copy_in(tensor, other, *, non_blocking):
        copied(tensor, non_blocking=non_blocking)
        return original_copy(tensor, other)

    original_copy, original_empty = torch.Tensor.copy_, torch.empty
    cuda = compute.torch.cuda
    monkeypatch.setattr(cuda, "Stream", lambda device: Recorder(next(names), log))
    monkeypatch.setattr(cuda, "Event", lambda: Recorder("event", log))
    monkeypatch.setattr(cuda, "stream", on)
    monkeypatch.setattr(cuda, "current_stream", lambda device: current[0])
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    monkeypatch.setattr(torch.Tensor, "to", copied)
    monkeypatch.setattr(torch.Tensor, "copy_", copy_in)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: log.append(f"kept for {stream.name}"))
    monkeypatch.setattr(torch, "empty", lambda *shape, pin_memory=False, **kind: original_empty(*shape, **kind))
    return log


class Noting(Halving):
    def __init__(self, log):
        super().__init__()
        self.log = log

    def forward(self, images, *, ids):
        self.log.append("purify")
        return super().forward(images, ids=ids)


def test_on_a_gpu_each_waits_for_what_it_needs_and_the_host_for_the_last_copy_alone(gpu):
    there = PurifierCompute(Noting(gpu))
    there.way = SideStreams(torch.device("cuda"))
    images = np.full((2, 1, 2, 2), 0.5, np.float32)
    started = there.start(images, IDS)
    arriving = ["copy on to"] * 2 + ["purifying waits for to"] + ["kept for purifying"] * 2
    leaving = ["fro waits for purifying", "copy on fro", "kept for fro", "event on fro"]
    assert gpu == [*arriving, "purify", *leaving]
    gpu.clear()
    assert np.array_equal(there.finish(started), images / 2 + IDS[:, None, None, None]) and gpu == ["host waits for the event"]


def test_streams_are_made_anew_in_another_process(monkeypatch):
    monkeypatch.setattr(compute.torch.cuda, "Stream", lambda device: lambda: None)  # which cannot be pickled
    assert pickle.loads(pickle.dumps(SideStreams(torch.device("cuda:1")))).device == torch.device("cuda:1")


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory: you tried to"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("shapes do not match"), False),
        (ValueError("images must be in [0, 1], got 7"), False),
    ],
    ids=str,
)
def test_every_way_to_say_that_memory_is_out_is_understood_and_nothing_else(error, is_memory):
    assert PurifierCompute(Halving()).is_out_of_memory(error) == is_memory


def test_threads_are_offered_on_cpus_from_pytorchs_own_number_down():
    here, before = PurifierCompute(Halving()), torch.get_num_threads()
    try:
        here.use_threads(6)
        assert here.thread_choices() == [6, 3, 1]
    finally:
        here.use_threads(before)
    here.device = torch.device("cuda")
    assert here.thread_choices() == []


def test_a_module_of_parameters_alone_says_where_it_is():
    assert PurifierCompute(nn.Conv2d(1, 1, 1, device="meta")).device.type == "meta"
    assert PurifierCompute(Halving()).device.type == "cpu"
