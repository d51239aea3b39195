"""How a launch reaches Triton: on the device that holds its tensors, whichever is the current one."""

import contextlib

import pytest
import torch

from purify_engine.kernels import _launch
from purify_engine.kernels._launch import Launch


class Kernel:
    """Notes what it is launched with, and what was the current device."""

    def __init__(self, current):
        self.seen, self.current = [], current

    def __getitem__(self, programs):
        return lambda **words: self.seen.append((programs, words, list(self.current)))


@pytest.mark.parametrize("several", [False, True])
def test_the_device_of_the_tensors_is_the_current_one_where_there_are_several(several, monkeypatch):
    current = []

    @contextlib.contextmanager
    def device_of(tensor):
        current.append(tensor.device)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2 if several else 1)
    _launch._are_several_gpus.cache_clear()
    try:
        kernel, x = Kernel(current), torch.empty(3, device="meta")
        Launch(kernel, (5, 2), {"skip_ptr": None, "x_ptr": x, "SIZE": 3}, num_warps=8, fp_fusion=False).run()
    finally:
        _launch._are_several_gpus.cache_clear()
    ((programs, words, device),) = kernel.seen
    assert programs == (5, 2) and words["x_ptr"] is x and words["SIZE"] == 3 and words["skip_ptr"] is None
    assert (words["num_warps"], words["num_stages"], words["enable_fp_fusion"]) == (8, 2, False)
    assert device == ([x.device] if several else []) and not current
