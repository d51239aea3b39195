"""The extension under the address and undefined-behaviour sanitizers: every op on exact buffers, and the tests of the ops."""

import os
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pybind11
import pytest

pytestmark = pytest.mark.system

ROOT = Path(__file__).parent.parent.parent
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer", "-g"]
QUIET = "detect_leaks=0:alloc_dealloc_mismatch=0:halt_on_error=1"  # Python and PyTorch leak, and mix allocators
# A test run in which `purify_engine._C` is the extension built here.
WITH_OURS = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("purify_engine._C", sys.argv[1])
sys.modules["purify_engine._C"] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
import pytest
sys.exit(pytest.main(["-q", "-x", "-s", "-p", "no:cacheprovider", *sys.argv[2:]]))
"""
# Sixty-four words into memory for two.
TOO_SHORT = """
import sys; sys.path.insert(0, sys.argv[1])
from array import array; import _C
words = array("q", [0] * 2)
at = words.buffer_info()[0]
_C.philox(at, (1, 64, at, at, at, 1))
"""
OPS = ("conv3x3_winograd", "relu_conv3x3", "side_by_side", "group_norm_silu", "guided_step", "q_sample", "philox")


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`_C` with sanitizers, by the project's own flags but for the optimisation level."""
    sys.path.insert(0, str(ROOT))
    flags = __import__("setup")
    folder = tmp_path_factory.mktemp("sanitized")
    include = [f"-I{path}" for path in (pybind11.get_include(), sysconfig.get_path("include"))]

    def compiled(source: Path) -> str:
        target = folder / f"{source.stem}.o"
        isa = flags.ISA_FLAGS.get(flags.isa_of(str(source)), [])
        command = ["g++", "-std=c++17", "-fPIC", "-DPURIFY_X86=1", *flags.FLAGS, "-O1", *isa, *SANITIZE, *include]
        subprocess.run([*command, "-c", str(source), "-o", str(target)], check=True)
        return str(target)

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compiled, sorted((ROOT / "csrc").glob("*.cpp"))))
    library = folder / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    subprocess.run(["g++", "-shared", "-fopenmp", *SANITIZE, *objects, "-o", str(library)], check=True)
    return library


def run(*command: str) -> subprocess.CompletedProcess[str]:
    # libstdc++ as well: the sanitizer looks for what throws exceptions before PyTorch has brought it.
    libraries = (["g++", f"-print-file-name={name}"] for name in ("libasan.so", "libstdc++.so"))
    preload = " ".join(subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip() for ask in libraries)
    watched = {"LD_PRELOAD": preload, "ASAN_OPTIONS": QUIET, "PYTHONMALLOC": "malloc"}  # Python's own pools have no red zones
    environment = {**os.environ, **watched, "OMP_NUM_THREADS": "2", "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment, timeout=1800, cwd=ROOT)


def test_every_op_on_exact_buffers(sanitized):
    done = run(str(Path(__file__).with_name("every_op.py")), str(sanitized.parent))
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr[-4000:]


def test_the_sanitizer_would_notice(sanitized):
    done = run("-c", TOO_SHORT, str(sanitized.parent))
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr


@pytest.mark.parametrize("op", OPS)
def test_the_tests_of_the_ops(sanitized, op):
    done = run("-c", WITH_OURS, str(sanitized), f"tests/ops/test_{op}.py")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-4000:]
