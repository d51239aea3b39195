"""The memory of a recording: aligned, large enough, used again when it may be; and what a recorder refuses to take."""

from __future__ import annotations

import pytest
import torch

from purify_engine.engine.cpu_capture import ALIGNMENT, CpuCapture, _Block, _computed_and_copied, _extent, _Memory, _out_variant

ATEN = torch.ops.aten


@pytest.mark.parametrize(("size", "held"), [(0, 64), (1, 64), (63, 64), (64, 64), (65, 128), (1000, 1024)])
def test_blocks_begin_and_end_where_pytorchs_own_memory_does(size, held):
    """Kernels round otherwise on memory of another alignment."""
    blocks = [_Block(size) for _ in range(5)]
    for block in blocks:
        assert block.size == held == len(block.lent) == len(block.kept)
        assert block.lent.data_ptr() % ALIGNMENT == 0 and ALIGNMENT == 64
        assert block.lent.data_ptr() == block.kept.data_ptr()


def test_a_block_is_free_until_something_lent_of_it_is_held_and_again_after_that():
    block = _Block(100)
    assert block.is_free()
    view = block.lent[:4]
    assert not block.is_free()
    kept = block.kept[:4]  # calls hold this, and may
    del view
    assert block.is_free() and kept is not None


def test_a_copy_has_the_numbers_and_the_strides():
    memory = _Memory()
    for tensor in (
        torch.rand(3, 4),
        torch.rand(3, 4).t(),
        torch.rand(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
        torch.rand(6, 6)[1::2, ::3],
        torch.rand(0, 4),
        torch.tensor(2.0),
        torch.arange(5),
    ):
        copied = memory.like(tensor)
        assert torch.equal(copied, tensor) and copied.stride() == tensor.stride() and copied.dtype == tensor.dtype
        assert copied.untyped_storage().data_ptr() != tensor.untyped_storage().data_ptr()


def test_a_free_block_serves_what_fills_half_of_it_the_smallest_first():
    memory = _Memory()
    sizes = [memory.like(torch.rand(count)) for count in (1024, 512, 2048)]
    places = [tensor.data_ptr() for tensor in sizes]
    del sizes
    small = memory.like(torch.rand(512))
    assert small.data_ptr() == places[1] and len(memory.blocks) == 3
    half = memory.like(torch.rand(520))  # the block of 512 is taken; that of 1024 fits, that of 2048 is too large
    assert half.data_ptr() == places[0] and len(memory.blocks) == 3
    another = memory.like(torch.rand(520))
    assert another.data_ptr() not in places and len(memory.blocks) == 4
    assert memory.like(torch.rand(1030)).data_ptr() == places[2]


@pytest.mark.parametrize(
    ("tensor", "extent"),
    [
        (torch.zeros(3, 4), 12),
        (torch.zeros(3, 4).t(), 12),
        (torch.zeros(3, 1).expand(3, 4), 3),
        (torch.zeros(6, 6)[::2, ::3], 4 * 6 + 3 + 1),
        (torch.zeros(()), 1),
        (torch.zeros(0, 4), 0),
    ],
)
def test_the_extent_of_a_tensor_is_from_its_first_element_to_its_last(tensor, extent):
    assert _extent(tensor) == extent


def test_operations_are_repeated_by_the_variant_that_writes_where_it_is_told():
    assert _out_variant(ATEN.mul.Tensor) == (ATEN.mul.out, ["out"])
    assert _out_variant(ATEN.sort.default) == (ATEN.sort.values, ["values", "indices"])
    assert _out_variant(ATEN.max.dim) == (ATEN.max.dim_max, ["max", "max_values"])
    assert _out_variant(ATEN.add_.Tensor) == (None, [])


def test_what_has_no_such_variant_is_computed_and_copied():
    x, outs = torch.tensor([[3.0, 1.0, 2.0]]), [torch.empty(1, 3), torch.empty(1, 3, dtype=torch.int64)]
    _computed_and_copied(ATEN.sort.default, (x,), {"dim": 1, "descending": True}, outs)
    assert [out.tolist() for out in outs] == [[[3, 2, 1]], [[0, 2, 1]]]
    _computed_and_copied(ATEN.mul.Tensor, (x, 2.0), {}, outs[:1])
    assert outs[0].tolist() == [[6, 2, 4]]


REFUSED = {
    "conjugated": (lambda x: (torch.complex(x, x).conj() * torch.complex(x, 2 * x)).real, "lazily conjugated or negated"),
    "negated": (lambda x: torch.complex(x, x).conj().imag + 1, "lazily conjugated or negated"),
    "in oneDNN's layout": (lambda x: x.to_mkldnn().to_dense() + 1, "in a layout of oneDNN's"),
    "read by Python": (lambda x: x + int(x.sum() > 0), "depends on what its tensors hold"),
    "of unknown size": (lambda x: x + x.nonzero().sum(), "depends on what its tensors hold"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_recorder_cannot_repeat_is_refused_with_its_reason_and_goes_on_running(name):
    work, reason = REFUSED[name]
    capture, x, out = CpuCapture(), torch.rand(2, 4, 3, 3), torch.empty(2, 4, 3, 3)
    replay = capture(lambda: out.copy_(work(x)))
    for seed in range(4):
        x.copy_(torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)))
        out.fill_(torch.nan)
        replay()
        torch.testing.assert_close(out, work(x))
    assert replay.calls is None and reason in capture.refused
    assert capture.refused.startswith("the step could not be recorded: ")


def test_once_something_was_refused_nothing_more_is_recorded():
    """The purifier loops from then on; half of its graphs replayed would save nothing."""
    capture, x = CpuCapture(), torch.rand(3)
    outs = [torch.empty(3) for _ in range(2)]
    bad, good = capture(lambda: outs[0].copy_(x * float(x.sum()))), capture(lambda: outs[1].copy_(2 * x))
    for _ in range(3):
        bad(), good()
    assert good.calls is None and bad.calls is None
    torch.testing.assert_close(outs[1], 2 * x)


def test_the_first_call_runs_the_second_records_and_the_third_replays():
    runs, x, out = [], torch.rand(3), torch.empty(3)
    replay = CpuCapture()(lambda: (runs.append(len(runs)), out.copy_(3 * x)))
    for expected in (1, 2, 2, 2):
        x.uniform_()
        replay()
        assert len(runs) == expected
        torch.testing.assert_close(out, 3 * x)
    assert CpuCapture().most_graphs == 4 and CpuCapture().bucket(3) == 3
