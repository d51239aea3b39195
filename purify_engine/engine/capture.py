"""Recording work once to replay it: what that asks of a recorder, the one for CUDA devices, and two branches side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch

from purify_engine.engine.process import One, Other, in_turn
from purify_engine.ops import switches

LARGEST_DOUBLING = 64  # buckets: 1, 2, 4 … to here, then its multiples
WARM_UP = 3  # runs before the recording: cuDNN chooses its algorithms, Triton compiles, cuBLAS takes its workspace
MOST_SIZES = 16  # heights and widths of images whose graphs are kept; a folder may hold a thousand
ALGORITHMS = 40  # that cuDNN times of each convolution, instead of the first 10 of its own list


class CaptureError(RuntimeError):
    """Work that cannot be recorded, and why."""


class Capture(Protocol):
    """Records `work` and returns what replays it. `work` reads and writes tensors that outlive it, and nothing on the host."""

    most_graphs: int | None  # that are kept for one purifier, the last ones used
    refused: str | None  # why work could not be recorded, where that shows only later; it then runs as it is
    fails_at_once: bool  # whether what cannot be recorded raises in the call that was to record it
    records_opening: bool  # whether what comes before the first step is worth a graph: launches cost, memory does not

    def __call__(self, work: Callable[[], None]) -> Callable[[], None]: ...

    def bucket(self, batch: int) -> int:
        """The batch that `batch` images are padded to, so that one recording serves many."""
        ...


def bucket_of(batch: int) -> int:
    """The least power of two that holds `batch`; beyond 64, the least multiple of 64."""
    if batch <= LARGEST_DOUBLING:
        return 1 << max(batch - 1, 0).bit_length()
    return -(-batch // LARGEST_DOUBLING) * LARGEST_DOUBLING


def superfluous(keys: Sequence[tuple[Any, ...]], most_graphs: int | None) -> list[tuple[Any, ...]]:
    """Of the keys (kind, shape [B, C, H, W], ...) of graphs, last used last, those to drop: a graph holds memory while it lives.

    Kept are the last `most_graphs`, and those of the last `MOST_SIZES` sizes of images.
    """
    sizes = list(dict.fromkeys(key[1][2:] for key in reversed(keys)))[:MOST_SIZES]
    oldest_kept = 0 if most_graphs is None else max(len(keys) - most_graphs, 0)
    return [key for place, key in enumerate(keys) if place < oldest_kept or key[1][2:] not in sizes]


class CudaCapture:
    """CUDA graphs in one memory pool, warmed up and recorded on a stream of their own. Replays must not overlap.

    cuDNN times its convolution algorithms in the warm-up, as it does with `torch.backends.cudnn.benchmark`, unless that module's
    `deterministic` is set; at most `ALGORITHMS` of them, where the switch `benchmark_limit` is on. What it chose it uses later,
    too, outside of graphs.
    """

    most_graphs: int | None = None
    refused: str | None = None
    fails_at_once: bool = True
    records_opening: bool = True

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()

    def __call__(self, work: Callable[[], None]) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        try:
            with _timing_algorithms():
                self._warm_up(work)
                _clear_workspaces()
                with torch.cuda.device(self.device), torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
                    work()
        except RuntimeError as error:
            raise CaptureError(f"the step could not be captured as a CUDA graph: {error}") from error
        return graph.replay

    def bucket(self, batch: int) -> int:
        return bucket_of(batch)

    def _warm_up(self, work: Callable[[], None]) -> None:
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            for _ in range(WARM_UP):
                work()
        current.wait_stream(self.stream)


def _clear_workspaces() -> None:
    """Have cuBLAS give back what it works in, so that it takes it anew in the recording, out of the graphs' own memory.

    A graph goes on writing where it was recorded to write. A workspace of the warm-up belongs to others as soon as anything
    clears them all, as torch.compile does for its own graphs; the next replay would then write into memory that is not ours.
    """
    clear = getattr(torch._C, "_cuda_clearCublasWorkspaces", None)  # there is none where PyTorch was built without CUDA
    if clear is not None:
        clear()


@contextmanager
def _timing_algorithms() -> Iterator[None]:
    """cuDNN times algorithms, and enough of them. A limit of 0 is none, and there is None where PyTorch has no cuDNN."""
    cudnn = torch.backends.cudnn
    benchmark, limit = cudnn.benchmark, cudnn.benchmark_limit
    try:
        cudnn.benchmark = benchmark or not cudnn.deterministic
        if switches.is_on("benchmark_limit") and limit:
            cudnn.benchmark_limit = max(limit, ALGORITHMS)
        yield
    finally:
        cudnn.benchmark = benchmark
        if limit:
            cudnn.benchmark_limit = limit


class Branches:
    """Two independent pieces of work: on two streams of a CUDA device, one after the other elsewhere."""

    def __init__(self, device: torch.device) -> None:
        self.side = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, one: Callable[[], One], other: Callable[[], Other]) -> tuple[One, Other]:
        """(one(), other())."""
        if self.side is None:
            return in_turn(one, other)
        current = torch.cuda.current_stream(self.side.device)
        self.side.wait_stream(current)
        with torch.cuda.stream(self.side):
            made_aside = other()
        made_here = one()
        current.wait_stream(self.side)
        if isinstance(made_aside, torch.Tensor):
            made_aside.record_stream(current)  # or the side stream would use its memory again while this one still reads it
        return made_here, made_aside
