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
sys.exit(pytest.main(["-q", "-x", "-p", "no:cacheprovider", *sys.argv[2:]]))
"""


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
    preload = subprocess.run(["g++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True).stdout.strip()
    environment = {**os.environ, "LD_PRELOAD": preload, "ASAN_OPTIONS": QUIET, "OMP_NUM_THREADS": "2", "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment, timeout=1800, cwd=ROOT)


def test_every_op_on_exact_buffers(sanitized):
    done = run(str(Path(__file__).with_name("every_op.py")), str(sanitized.parent))
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr[-4000:]


def test_the_sanitizer_would_notice(sanitized):
    short = "from array import array; import _C; x = array('q', [0] * 2); _C.philox(x.buffer_info()[0], (1, 64, *[x.buffer_info()[0]] * 3, 1))"
    done = run("-c", f"import sys; sys.path.insert(0, {str(sanitized.parent)!r}); {short}")
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr


@pytest.mark.parametrize("tests", ["test_conv3x3_winograd", "test_group_norm_silu", "test_guided_step", "test_q_sample", "test_philox"])
def test_the_tests_of_the_ops(sanitized, tests):
    done = run("-c", WITH_OURS, str(sanitized), f"tests/ops/{tests}.py")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-4000:]
