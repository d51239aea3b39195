"""Recording on CUDA devices without one: what is asked of streams and graphs, in which order, and what is put back."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import pytest
import torch

from purify_engine.engine.capture import (
    ALGORITHMS,
    MOST_SIZES,
    WARM_UP,
    Branches,
    CaptureError,
    CudaCapture,
    bucket_of,
    superfluous,
)
from purify_engine.ops import switches

DEVICE = SimpleNamespace(type="cuda")


class FakeCuda:
    """Stands in for `torch.cuda`: streams that note what waits for what, graphs that note where they are recorded."""

    def __init__(self, monkeypatch):
        self.log, self.made = [], 0
        self.now = self.main = self.stream_named("main")
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: self.stream_named(f"side of {device.type}"))
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: self.now)
        monkeypatch.setattr(torch.cuda, "stream", self.on)
        monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext(self.log.append(f"device {device.type}")))
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", self.pool)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", self.graph)
        monkeypatch.setattr(torch.cuda, "graph", self.recording)

    def stream_named(self, name):
        return SimpleNamespace(
            name=name, wait_stream=lambda other: self.log.append(f"{name} waits for {other.name}"), device=DEVICE
        )

    def pool(self):
        self.made += 1
        return f"pool {self.made}"

    def graph(self):
        return SimpleNamespace(replay=lambda: self.log.append("replay"))

    @contextlib.contextmanager
    def on(self, stream):
        before, self.now = self.now, stream
        yield
        self.now = before

    @contextlib.contextmanager
    def recording(self, graph, *, pool, stream):
        self.log.append(f"record into {pool} on {stream.name}")
        with self.on(stream):
            yield
        self.log.append("recorded")


@pytest.fixture
def cuda(monkeypatch):
    return FakeCuda(monkeypatch)


def test_work_is_warmed_up_and_recorded_on_a_stream_of_its_own_and_in_one_pool(cuda):
    capture = CudaCapture(DEVICE)
    for _ in range(2):
        cuda.log.clear()
        replay = capture(lambda: cuda.log.append(f"work on {cuda.now.name}"))
        assert cuda.log == [
            "side of cuda waits for main",
            *["work on side of cuda"] * WARM_UP,
            "main waits for side of cuda",
            "device cuda",
            "record into pool 1 on side of cuda",
            "work on side of cuda",
            "recorded",
        ]
    replay()
    assert cuda.log[-1] == "replay"
    assert capture.bucket(33) == bucket_of(33) == 64
    assert capture.refused is None and capture.most_graphs is None


def test_a_recording_takes_workspaces_of_its_own_which_nothing_else_can_give_back(cuda, monkeypatch):
    monkeypatch.setattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: cuda.log.append("workspaces cleared"), raising=False)
    CudaCapture(DEVICE)(lambda: cuda.log.append("work"))
    cleared, recorded = cuda.log.index("workspaces cleared"), cuda.log.index("record into pool 1 on side of cuda")
    assert cuda.log[:cleared].count("work") == WARM_UP and cleared < recorded
    assert "work" not in cuda.log[cleared:recorded]


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("timed", [False, True])
def test_cudnn_times_its_algorithms_unless_they_must_be_deterministic_and_is_left_as_it_was(
    cuda, monkeypatch, timed, deterministic
):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", timed)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", deterministic)
    seen = []
    CudaCapture(DEVICE)(lambda: seen.append(torch.backends.cudnn.benchmark))
    assert seen == [timed or not deterministic] * (WARM_UP + 1)
    assert torch.backends.cudnn.benchmark == timed


def test_a_failure_is_told_with_its_reason_and_leaves_cudnn_as_it_was(cuda, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)

    def work():
        raise RuntimeError("out of memory")

    with pytest.raises(CaptureError, match="the step could not be captured as a CUDA graph: out of memory"):
        CudaCapture(DEVICE)(work)
    assert torch.backends.cudnn.benchmark is False


@pytest.mark.parametrize(("limit", "timed"), [(10, ALGORITHMS), (100, 100), (0, 0), (None, None)], ids=str)
@pytest.mark.parametrize("on", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_cudnn_times_more_algorithms_where_that_is_switched_on_and_its_limit_is_put_back(
    cuda, monkeypatch, limit, timed, on, fails
):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark_limit", limit)
    seen = []

    def work():
        seen.append(torch.backends.cudnn.benchmark_limit)
        if fails:
            raise RuntimeError("out of memory")

    with switches.switched(benchmark_limit=on), pytest.raises(CaptureError) if fails else contextlib.nullcontext():
        CudaCapture(DEVICE)(work)
    assert seen == [timed if on else limit] * (1 if fails else WARM_UP + 1)
    assert torch.backends.cudnn.benchmark_limit == limit


def test_two_branches_run_on_two_streams_and_wait_for_each_other(cuda):
    seen = []

    class Recorded(torch.Tensor):
        def record_stream(self, stream):
            seen.append(stream.name)

    theirs = torch.zeros(2).as_subclass(Recorded)
    branches = Branches(DEVICE)

    def work(name, result):
        cuda.log.append(f"{name} on {cuda.now.name}")
        return result

    one, other = branches(lambda: work("one", 1), lambda: work("other", theirs))
    assert one == 1 and other is theirs
    assert cuda.log == ["side of cuda waits for main", "other on side of cuda", "one on main", "main waits for side of cuda"]
    assert seen == ["main"]  # its memory is the side stream's: it may not be used again while this one reads it
    assert branches(lambda: 1, lambda: None) == (1, None)


def test_on_a_cpu_branches_are_one_after_the_other():
    order = []
    assert Branches(torch.device("cpu"))(lambda: order.append("one") or 1, lambda: order.append("other") or 2) == (1, 2)
    assert order == ["one", "other"]


@pytest.mark.parametrize(("batch", "bucket"), [(0, 1), (1, 1), (2, 2), (5, 8), (64, 64), (65, 128), (128, 128), (129, 192)])
def test_a_bucket_is_the_least_that_holds_the_batch(batch, bucket):
    assert bucket_of(batch) == bucket


def test_graphs_are_kept_of_the_last_sizes_of_images_and_no_more_than_a_recorder_allows():
    keys = [("step", torch.Size((batch, 1, side, 8))) for side in range(1, MOST_SIZES + 3) for batch in (1, 2)]
    used_again = keys[0]  # the first size, at one batch
    keys = [*keys[1:], used_again]
    dropped = superfluous(keys, None)
    assert {key[1][2] for key in dropped} == {2, 3} and len(dropped) == 4
    assert superfluous(keys[:MOST_SIZES], None) == []
    assert superfluous(keys, 4) == keys[:-4] and superfluous([], 4) == []
