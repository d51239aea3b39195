"""The extension reads and writes nothing that is not its own: every op under valgrind, odd sizes, exact buffers."""

import os
import shutil
import subprocess
import sys

import pytest

pytestmark = pytest.mark.system

EVERY_OP = """
from array import array
from purify_engine import _C

def buffer(kind, length):
    return array(kind, [0] * length) if kind == "q" else array(kind, [0.1 * (i % 7) for i in range(length)])

key, step = buffer("q", 1), buffer("q", 1)
at = lambda values: values.buffer_info()[0]
for instruction_set in _C.instruction_sets():
    _C.use_instruction_set(instruction_set)
    for images, numel in ((1, 1), (2, 33), (3, 3 * 31 * 5)):
        ids = buffer("q", images)
        batch = (images, numel, at(key), at(step), at(ids), 1)
        words = buffer("q", images * numel)
        _C.philox(at(words), batch)
        for kind, dtype in (("f", "float32"), ("d", "float64")):
            out, x, eps, grad = (buffer(kind, images * numel) for _ in range(4))
            rows, marginal = buffer("d", 4), buffer("d", 2)
            getattr(_C, f"philox_normal_{dtype}")(at(out), batch)
            getattr(_C, f"q_sample_{dtype}")(at(out), at(x), at(marginal), batch)
            getattr(_C, f"guided_step_{dtype}")(at(out), at(x), at(eps), at(grad), at(rows), 1, batch)
    for images, channels, pixels, groups in ((1, 4, 1, 2), (2, 6, 35, 3)):
        for kind, dtype in (("f", "float32"), ("d", "float64")):
            x, y, grad_out, grad_x = (buffer(kind, images * channels * pixels) for _ in range(4))
            weight, bias, grad_weight, grad_bias = (buffer(kind, channels) for _ in range(4))
            scale, shift, grad_scale, grad_shift = (buffer(kind, images * channels) for _ in range(4))
            norm = (*map(at, (x, weight, bias, scale, shift)), images, channels, pixels, groups, 1e-5, True, 1)
            getattr(_C, f"group_norm_silu_{dtype}")(at(y), norm)
            grads = map(at, (grad_x, grad_weight, grad_bias, grad_scale, grad_shift, grad_out))
            getattr(_C, f"group_norm_silu_backward_{dtype}")(*grads, norm)
print("done")
"""


def test_every_op_stays_inside_its_buffers():
    assert shutil.which("valgrind"), "valgrind is missing; install it to run this check"
    command = ["valgrind", "--quiet", "--leak-check=no", sys.executable, "-c", EVERY_OP]
    environment = {**os.environ, "PYTHONMALLOC": "malloc", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900)
    assert (run.returncode, run.stdout) == (0, "done\n"), run.stderr[-4000:]
    # Python's own import machinery draws complaints; ours would have the extension in their stack.
    complaints = [block for block in run.stderr.split("==\n") if "_C.cpython" in block or "purify::" in block]
    assert not complaints, complaints[0]
