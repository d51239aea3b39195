"""How a launch reaches Triton: on the device that holds its tensors, whichever is the current one."""

import contextlib
import os
import subprocess
import sys

import pytest
import torch

from purify_engine.kernels import _launch
from purify_engine.kernels._launch import Launch


class Kernel:
    """Notes what it is launched with, and what was the current device."""

    arg_names, pre_run_hooks = ["skip_ptr", "x_ptr", "SIZE"], ()

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


class Compiled:
    """A kernel in place of Triton's: notes when it is looked for, and what each launch is given."""

    arg_names = ["skip_ptr", "x_ptr", "size", "gain"]

    def __init__(self):
        self.looked_for, self.launched, self.pre_run_hooks = 0, [], []

    def __getitem__(self, programs):
        def found(**words):
            self.looked_for += 1
            self.launched.append((programs, [words[name] for name in self.arg_names]))
            return self.over

        return found

    @property
    def over(self):
        kernel = self

        class Ready:
            def __getitem__(self, grid):
                assert len(grid) == 3
                return lambda *given: kernel.launched.append((grid[:1], list(given)))

        return Ready()


@pytest.fixture
def nothing_ready(monkeypatch):
    monkeypatch.setattr(_launch, "_ready", {})


X = torch.zeros(64)
FIRST = {"x_ptr": X, "skip_ptr": None, "gain": 1.5, "size": 3}
OTHERS = {
    "another dtype": {"x_ptr": X.double()},
    "a tensor where there was none": {"skip_ptr": X},
    "another number": {"size": 4},
    "another constant": {"gain": 2.5},
}


def test_what_was_compiled_for_such_arguments_is_launched_without_looking_for_it(nothing_ready):
    kernel, other = Compiled(), X + 1
    for x in (X, other, X):
        Launch(kernel, (7,), {**FIRST, "x_ptr": x}).run()
    assert kernel.looked_for == 1
    assert kernel.launched == [((7,), [None, x, 3, 1.5]) for x in (X, other, X)]
    assert kernel.launched[1][1][1] is other  # not what it was compiled with


@pytest.mark.parametrize("change", OTHERS.values(), ids=OTHERS)
def test_other_arguments_are_looked_for(change, nothing_ready):
    kernel = Compiled()
    for arguments in (FIRST, {**FIRST, **change}, FIRST, {**FIRST, **change}):
        Launch(kernel, (7,), arguments).run()
    assert kernel.looked_for == 2
    for options in ({"num_warps": 8}, {"num_stages": 3}, {"fp_fusion": False}):
        Launch(kernel, (7,), FIRST, **options).run()
    Launch(kernel, (8,), FIRST).run()
    Launch(Compiled(), (7,), FIRST).run()
    assert kernel.looked_for == 6 and len(_launch._ready) == 7


def test_pointers_that_are_not_aligned_and_kernels_with_hooks_are_left_to_triton(nothing_ready):
    kernel = Compiled()
    for _ in range(2):
        Launch(kernel, (7,), {**FIRST, "x_ptr": X[1:]}).run()
    kernel.pre_run_hooks.append(lambda *given: None)
    Launch(kernel, (7,), FIRST).run()
    assert kernel.looked_for == 3 and not _launch._ready


def test_no_more_is_kept_than_a_limit(nothing_ready, monkeypatch):
    monkeypatch.setattr(_launch, "MOST_READY", 3)
    kernel = Compiled()
    for size in range(8):
        Launch(kernel, (7,), {**FIRST, "size": size}).run()
    assert 1 <= len(_launch._ready) <= 3 and kernel.looked_for == 8


IN_TRITON = """
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel
from triton.runtime import driver
from purify_engine.kernels import _launch, to_images

class Driver:  # of a GPU that is not there
    def get_current_device(self): return 0
    def get_current_stream(self, device): return 5
    def get_current_target(self): return GPUTarget("cuda", 90, 32)

launched = []
def handles(kernel):
    kernel.module, kernel.function = "module", "function"
    kernel._run = lambda *given: launched.append(given)

driver.set_active(Driver())
CompiledKernel._init_handles = handles
x = torch.zeros(2, 3, 8, 8)
out = torch.empty(2, 3, 8, 8, dtype=torch.uint8)
for _ in range(3):
    to_images._launch(out, x).run()
first, *others = [[value.data_ptr() if isinstance(value, torch.Tensor) else value for value in given] for given in launched]
for given in (first, *others):
    given[6] = type(given[6])  # what a profiler is told, made anew for each launch
assert len(_launch._ready) == 1 and len(others) == 2, (len(_launch._ready), len(launched))
assert all(other == first for other in others), (first, others)
assert first[:5] == [*first[:3], 5, "function"]
"""


def test_tritons_own_launcher_is_given_the_same_both_ways():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", IN_TRITON], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
