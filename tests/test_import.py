"""Importing: torch and the extension in either order, an extension that is missing, one that is broken, one that is too old."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import purify_engine
from purify_engine.ops import capability

PACKAGE = Path(purify_engine.__file__).parent
STEP = "from purify_engine import ops; ops.philox(torch.tensor(1), torch.arange(64), torch.tensor(0), 4096)"
OPENMP = "print(len({line.split()[-1] for line in open('/proc/self/maps') if 'libgomp' in line}))"

# An editable install has a finder of its own, which would find the extension wherever the package lies.
FIND_BY_PATH = (
    "import sys\n"
    "sys.meta_path[:] = [found for found in sys.meta_path if '__editable__' not in getattr(found, '__module__', '')]\n"
)


def run(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent), **variables}
    command = [sys.executable, "-c", FIND_BY_PATH + code]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd="/", timeout=120)


def checkout_with(folder: Path, extension: str | None, name: str = "_C") -> str:
    """A copy of the package made of links, an extension replaced: what to put on the path."""
    package = folder / "purify_engine"
    package.mkdir()
    for entry in PACKAGE.iterdir():
        if not entry.name.startswith(f"{name}."):
            (package / entry.name).symlink_to(entry)
    if extension is not None:
        (package / f"{name}.py").write_text(extension)
    return str(folder)


def test_the_extension_is_built():
    assert capability().cpp, "build it with: pip install -e ."


@pytest.mark.parametrize("imports", ["import torch, purify_engine._C", "import purify_engine._C, torch"])
def test_torch_and_the_extension_share_one_openmp_in_either_order(imports):
    # Parallel regions of torch and of ours: with two libraries each would keep a pool of threads of its own.
    parallel = f"torch.set_num_threads(2); torch.randn(512, 512) @ torch.randn(512, 512); torch.randn(1 << 20).exp(); {STEP}"
    result = run(f"{imports}; import torch; {parallel}; {OPENMP}")
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "1"


def test_importing_the_package_does_not_import_torch():
    assert run("import sys, purify_engine; sys.exit('torch' in sys.modules)").returncode == 0


def test_without_the_extension_the_reference_runs(tmp_path):
    code = f"import torch; {STEP}; print(ops.OPS['philox'].resolve(torch.tensor(1), torch.arange(2), torch.tensor(0), 5)[0])"
    result = run(code, PYTHONPATH=checkout_with(tmp_path, None))
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "reference"


def test_forcing_a_missing_extension_says_how_to_build_it(tmp_path):
    code = f"import torch\nfrom purify_engine import ops\nwith ops.backend('cpp'):\n    {STEP}"
    result = run(code, PYTHONPATH=checkout_with(tmp_path, None))
    assert "RuntimeError: purify::philox has no cpp engine" in result.stderr
    assert "pip install -e ." in result.stderr


@pytest.mark.parametrize(
    ("extension", "complaint"),
    [("raise ImportError('undefined symbol: omp_get_num_threads')", "does not load"), ("INTERFACE = 0", "another version")],
)
@pytest.mark.parametrize("name", ["_C", "_cuda"])
def test_a_broken_extension_is_an_error_that_says_how_to_repair_it(tmp_path, extension, complaint, name):
    result = run("import purify_engine.ops", PYTHONPATH=checkout_with(tmp_path, extension, name))
    last_line = result.stderr.strip().splitlines()[-1]
    assert last_line.startswith(f"ImportError: purify_engine.{name} ")
    assert complaint in last_line
    assert "rebuild it with `pip install -e .`" in last_line
