"""Recording work on CPU tensors once, to replay it without Python's part, which costs a single image more than most kernels do.

What CUDA graphs are to a GPU: while the work runs once, a dispatch mode notes every operation of PyTorch's beneath autograd, and
`ops.observe_launches` every launch of the C++ extension. A replay runs the notes in order on the very memory that they were
taken on, PyTorch's operations by their `out=` variants: the same kernels on the same numbers, so the results are equal to the
bit. Views and shapes are not repeated. What reads a number back to Python, or makes a tensor of a size that depends on data,
is refused, and so is what takes a tensor past PyTorch's dispatcher (`.numpy()`, `.tolist()`), where it would not be seen. Other
runtimes that read memory by its address are not seen, and would stay as they were: nothing of ours does so.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only

from purify_engine import ops
from purify_engine.engine.capture import CaptureError

MOST_VALUES = 2**15  # of one image; networks for larger ones take seconds a step, of which Python's part is not seen
LARGE = "steps of such large images take seconds on a CPU: recordings would hold memory and save no time that can be seen"
ALIGNMENT = 64  # bytes, as PyTorch aligns its own
LARGEST_FIT = 2  # a free block serves what fills at least one in so many of its bytes
ALLOCATE = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")
UNREPEATABLE = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)
# The ops whose result may be in a layout of oneDNN's: a weight, laid out once.
PACK = ("_reorder_convolution_weight", "_reorder_convolution_transpose_weight")

UNSEEN = ("numpy", "tolist", "__array__", "__dlpack__")  # methods of tensors that the dispatcher is not told of

Call = Callable[[], object]

_one_at_a_time = threading.RLock()  # PyTorch counts dispatch modes for all threads together: two that overlap would leave one on


class CpuCapture:
    """Records work on the CPU as it runs: no run is spent on the recording. Replays must not overlap.

    The first call of what it returns runs the work, and so packs weights and fills tables; the second is recorded; all others
    replay. Work that cannot be recorded goes on running, and `refused` says why.
    """

    most_graphs: int | None = 4  # each holds the memory of a step
    fails_at_once: bool = False
    records_opening: bool = False

    def __init__(self) -> None:
        self.refused: str | None = None

    def __call__(self, work: Callable[[], None]) -> Recording:
        return Recording(work, self)

    def bucket(self, batch: int) -> int:
        """The batch that `batch` images are padded to: on a CPU every image costs its time."""
        return batch


class Recording:
    """Work that is soon replayed: `calls` repeat it in `memory`, once it was recorded."""

    def __init__(self, work: Callable[[], None], capture: CpuCapture) -> None:
        self._work: Callable[[], None] | None = work
        self._capture = capture
        self._is_warm = False
        self.calls: list[Call] | None = None
        self.memory = _Memory()

    @torch.no_grad()
    def __call__(self) -> None:
        if self.calls is not None:
            for call in self.calls:
                call()
            return
        assert self._work is not None
        if not self._is_warm or self._capture.refused:
            self._work()
            self._is_warm = True
        else:
            self._record(self._work)

    def _record(self, work: Callable[[], None]) -> None:
        recorder = _Recorder(self.memory)
        try:
            with _one_at_a_time, ops.observe_launches(recorder.launched), recorder, _NothingUnseen():
                work()
        except Exception as error:  # of any kind: a fault of the work itself is raised again below
            says = str(error) if isinstance(error, CaptureError) else f"the step could not be recorded: {error}"
            self._capture.refused = says
            self.memory = _Memory()
            work()  # which changes what outlives it at its end, if it got there
        else:
            self.calls, self._work = recorder.calls, None  # the work refers to the graph that holds this recording


class _Recorder(TorchDispatchMode):
    """Notes in `calls` what repeats everything that runs under it."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: purifiers are not compiled (uncompiled.py), and PyTorch imports its compiler to skip it."""
        return False

    def __init__(self, memory: _Memory) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.memory = memory

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "purify":
            with self:  # an op of ours is what its launcher does: operations of PyTorch's, and launches
                return ops.OPS[func.overloadpacket.__name__](*args, **kwargs)
        if any(tag in func.tags for tag in UNREPEATABLE):
            raise CaptureError(f"the step could not be recorded: {func} depends on what its tensors hold")
        result = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        if name == "lift_fresh":  # a constant: what changes it in place starts from its value every time
            constant, lifted = result.detach(), self.memory.like(result)
            self.calls.append(partial(self.memory.kept(lifted).copy_, constant))
            return lifted
        if name not in PACK and any(isinstance(leaf, Tensor) and leaf.is_mkldnn for leaf in tree_leaves(result)):
            raise CaptureError(f"the step could not be recorded: {func} has a result in a layout of oneDNN's")
        given = {_storage(tensor) for tensor in _tensors((args, kwargs))}
        if all(_storage(tensor) in given for tensor in _tensors(result)):  # a view, something changed in place, or no tensor
            if func._schema.is_mutable:
                self.calls.append(partial(func, *self._kept(args), **self._kept(kwargs)))
            return result
        moved = tree_map_only(Tensor, lambda tensor: tensor if _storage(tensor) in given else self.memory.like(tensor), result)
        if name not in ALLOCATE:
            self._note(func, self._kept(args), self._kept(kwargs), self._kept(moved))
        return moved

    def _note(self, func: Any, args: Any, kwargs: Any, results: Any) -> None:
        """A call that computes `results` again, where they are."""
        variant, names = _out_variant(func)
        outs = results if isinstance(results, (tuple, list)) else (results,)
        if variant is None or len(names) != len(outs) or not all(isinstance(out, Tensor) for out in outs):
            self.calls.append(partial(_computed_and_copied, func, args, kwargs, outs))
        else:
            self.calls.append(partial(variant, *args, **kwargs, **dict(zip(names, outs, strict=True))))

    def launched(self, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        """A launch of the C++ extension, told by `ops.observe_launches`."""
        with _disable_current_modes():
            kept = self._kept(arguments)
        self.memory.alive.append(kept)
        self.calls.append(partial(function, *ops.addressed(kept)))

    def _kept(self, values: Any) -> Any:
        return tree_map_only(Tensor, self.memory.kept, values)


class _NothingUnseen(TorchFunctionMode):
    """Refuses what hands a tensor's numbers to others than PyTorch: a replay would go on with those of the recording."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        if (name := getattr(func, "__name__", "")) in UNSEEN:
            raise CaptureError(f"the step could not be recorded: Tensor.{name} hands numbers to others than PyTorch")
        return func(*args, **(kwargs or {}))


@dataclass
class _Memory:
    """The memory of a recording, used again where nothing refers to it any more: it stays as small and as warm as without one."""

    blocks: dict[int, _Block] = field(default_factory=dict)  # by the storage that is lent
    alive: list[Any] = field(default_factory=list)

    def like(self, tensor: Tensor) -> Tensor:
        """A copy of `tensor`, strides and all, in memory of ours."""
        size = _extent(tensor) * tensor.element_size()
        fitting = (block for block in self.blocks.values() if size <= block.size <= LARGEST_FIT * size + ALIGNMENT)
        free = [block for block in fitting if block.is_free()]
        block = min(free, key=lambda block: block.size) if free else self._more(size)
        return _viewed(block.lent, tensor, 0).copy_(tensor)

    def _more(self, size: int) -> _Block:
        block = _Block(size)
        self.blocks[_storage(block.lent)] = block
        return block

    def kept(self, tensor: Tensor) -> Tensor:
        """`tensor` for a call to keep: of a block of ours it does not count as a user, of anything else it does."""
        if tensor.is_conj() or tensor.is_neg():
            raise CaptureError("the step could not be recorded: a lazily conjugated or negated tensor is in it")
        if tensor.is_mkldnn:  # packed weights
            return tensor
        block = self.blocks.get(_storage(tensor))
        return tensor.detach() if block is None else _viewed(block.kept, tensor, int(tensor.storage_offset()))


class _Block:
    """Memory with two storages: `lent` to what runs while it is recorded, where users are counted; `kept` for the calls."""

    def __init__(self, size: int) -> None:
        self.size = max(ALIGNMENT, -(-size // ALIGNMENT) * ALIGNMENT)
        memory = np.empty(self.size + ALIGNMENT, dtype=np.uint8)
        begin = -memory.ctypes.data % ALIGNMENT
        self.lent, self.kept = (torch.from_numpy(memory[begin : begin + self.size]) for _ in range(2))
        self._storage = _storage(self.lent)
        self._idle = torch._C._storage_Use_Count(self._storage)

    def is_free(self) -> bool:
        return torch._C._storage_Use_Count(self._storage) <= self._idle


def _viewed(memory: Tensor, like: Tensor, offset: int) -> Tensor:
    return torch.empty(0, dtype=like.dtype, device="cpu").set_(memory.untyped_storage(), offset, like.shape, like.stride())


def _extent(tensor: Tensor) -> int:
    """Elements from the first to the last of a tensor."""
    reach = ((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return 1 + sum(reach) if tensor.numel() else 0


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _tensors(values: Any) -> list[Tensor]:
    """All tensors among `values` but packed weights, which have no storage."""
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor) and not leaf.is_mkldnn]


def _computed_and_copied(func: Any, args: Any, kwargs: Any, outs: Iterable[Any]) -> None:
    results = func(*args, **kwargs)
    for out, result in zip(outs, results if isinstance(results, (tuple, list)) else (results,), strict=True):
        if isinstance(out, Tensor):
            out.copy_(result)


@functools.cache
def _out_variant(func: Any) -> tuple[Any, list[str]]:
    """The overload that computes `func` into given tensors, and their names; None if there is none."""
    wanted = [(argument.name, str(argument.type)) for argument in func._schema.arguments]
    for name in func.overloadpacket.overloads():
        arguments = getattr(func.overloadpacket, name)._schema.arguments
        outs = [argument.name for argument in arguments if argument.is_out]
        if outs and [(argument.name, str(argument.type)) for argument in arguments if not argument.is_out] == wanted:
            return getattr(func.overloadpacket, name), outs
    return None, []
