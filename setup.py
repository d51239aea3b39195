"""The extensions, `purify_engine._C` in C++ and `purify_engine._cuda` in CUDA C++, and README.md as package indexes show it.

All else about the package is in pyproject.toml.

The first needs a C++17 compiler with OpenMP, and pybind11. The second is built where there is an nvcc besides (in CUDA_HOME,
CUDA_PATH or on PATH), for every GPU of ARCHITECTURES that it knows; PURIFY_ENGINE_CUDA=0 leaves it out. Building needs neither
torch nor a GPU. Where one cannot be built the package installs without it and runs on what it has; `purify-engine doctor` says
which.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pybind11
from pybind11.setup_helpers import ParallelCompile, Pybind11Extension, build_ext
from setuptools import Extension, find_packages, setup
from setuptools.errors import CompileError

# -fno-math-errno and -fno-trapping-math let loops with a square root or a choice become vectors; results stay IEEE.
FLAGS = ["-O3", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-Wall", "-Wextra"]
# For `*_avx2.cpp` and `*_avx512.cpp` only: chosen at run time, never because of the machine that builds.
# A loop whose jump straddles 32 bytes loses a third of its speed on Intel's cores of 2015 to 2020, since their erratum was cured.
AVX2_FLAGS = ["-mavx2", "-mfma", "-falign-loops=64"]
AVX512_FLAGS = [*AVX2_FLAGS, "-mavx512f", "-mavx512vl", "-mprefer-vector-width=512"]
ISA_FLAGS = {"avx2": AVX2_FLAGS, "avx512": AVX512_FLAGS}
IS_X86 = platform.machine().lower() in ("x86_64", "amd64")

# Machine code of 8.0 runs on 8.6 and 8.9 as it is; for what is not listed, or is to come, the driver compiles the PTX of 8.0. All
# machine code is made from that PTX: the kernels use nothing that came later, and one front end is a third of the work.
ARCHITECTURES = (80, 90, 100)
# Without fused multiply-adds, but where one is spelt out, sums are rounded alike in every kernel, on every GPU, by any compiler.
NVCC_FLAGS = ["-std=c++17", "-O3", "-fmad=false", "-Xcompiler=-fPIC,-fvisibility=hidden,-Wall,-Wextra"]
# PyTorch brings a CUDA runtime of its own along, of another version maybe: this one must keep its symbols to itself.
NVCC_LINK_FLAGS = ["-shared", "-cudart=static", "-Xlinker=--exclude-libs,ALL"]

RELATIVE_LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?![\w+.-]+:|#)(?P<target>[^)\s]+)\)")


class BuildExtension(build_ext):
    """Compiles every `*_<isa>.cpp` with the flags of its instruction set, and the CUDA extension by nvcc."""

    def build_extensions(self) -> None:
        compile_one = self.compiler._compile

        def compile_for_its_instruction_set(obj: str, src: str, ext: str, cc_args: Any, flags: list[str], pp_opts: Any) -> None:
            compile_one(obj, src, ext, cc_args, flags + ISA_FLAGS.get(isa_of(src), []), pp_opts)

        self.compiler._compile = compile_for_its_instruction_set
        super().build_extensions()

    def build_extension(self, ext: Extension) -> None:
        if ext.name != "purify_engine._cuda":
            super().build_extension(ext)
            return
        nvcc, library = str(find_nvcc()), Path(self.get_ext_fullpath(ext.name))
        objects = {source: Path(self.build_temp, "cuda", Path(source).name).with_suffix(".o") for source in ext.sources}
        for folder in {library.parent, *(object.parent for object in objects.values())}:
            folder.mkdir(parents=True, exist_ok=True)
        includes = [f"-I{folder}" for folder in (pybind11.get_include(), *self.include_dirs)]
        compile_flags = [*NVCC_FLAGS, *targets(nvcc), *includes]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            commands = ([nvcc, *compile_flags, "-c", source, "-o", str(object)] for source, object in objects.items())
            list(pool.map(run, commands))
        run([nvcc, *NVCC_LINK_FLAGS, *map(str, objects.values()), "-o", str(library)])


def isa_of(source: str) -> str:
    """What follows the last underscore in the name of a source: its instruction set, if it has one."""
    return Path(source).stem.rpartition("_")[2]


def run(command: list[str]) -> None:
    """A step of the build; what it complains of is what a failed build of an optional extension reports."""
    print(" ".join(command), flush=True)
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise CompileError(f"{command[0]} does not run: {error}") from error
    if done.returncode:
        raise CompileError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


def find_nvcc() -> Path | None:
    """CUDA's compiler, if there is one."""
    homes = (os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH"))
    found = [shutil.which("nvcc", path=str(Path(home, "bin"))) for home in homes if home] or [shutil.which("nvcc")]
    return next((Path(path) for path in found if path), None)


def targets(nvcc: str) -> list[str]:
    """nvcc's arguments for those of ARCHITECTURES that it knows."""
    known = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=False).stdout.split()
    code = [f"sm_{number}" for number in ARCHITECTURES if f"compute_{number}" in known]
    return [f"-gencode=arch=compute_80,code=[{','.join(['compute_80', *code])}]"]


def cpp_extension() -> Extension:
    """`_C`, with the sources that this processor's family can use."""
    sources = [str(path) for path in sorted(Path("csrc").glob("*.cpp")) if IS_X86 or isa_of(str(path)) not in ISA_FLAGS]
    return Pybind11Extension(
        "purify_engine._C",
        sources,
        depends=[str(path) for path in sorted(Path("csrc").glob("*.h"))],
        define_macros=[("PURIFY_X86", "1")] if IS_X86 else [],
        extra_compile_args=FLAGS,
        extra_link_args=["-fopenmp"],
        cxx_std=17,
        optional=True,
    )


def cuda_extensions() -> list[Extension]:
    """`_cuda` where it is wanted and nvcc is there."""
    if os.environ.get("PURIFY_ENGINE_CUDA") == "0" or find_nvcc() is None:
        return []
    sources = [str(path) for path in sorted(Path("csrc/cuda").iterdir()) if path.suffix in (".cu", ".cpp")]
    return [Extension("purify_engine._cuda", sources, optional=True)]


def long_description() -> str:
    """README.md, its relative links made absolute: to the project's home, at the tag of this version. Indexes show it alone."""
    home = stated("pyproject.toml", r'^Homepage = "(.+)"$')
    tag = "v" + stated("purify_engine/__init__.py", r'^__version__ = "(.+)"$')

    def absolute(link: re.Match[str]) -> str:
        folder = f"{home}/{'raw' if link['image'] else 'blob'}/{tag}"
        return f"{link['image']}[{link['text']}]({folder}/{link['target']})"

    return RELATIVE_LINK.sub(absolute, Path("README.md").read_text(encoding="utf-8"))


def stated(path: str, pattern: str) -> str:
    """What a file says in the one line that `pattern` describes."""
    (found,) = re.findall(pattern, Path(path).read_text(encoding="utf-8"), re.MULTILINE)
    return found


if __name__ == "__main__":
    ParallelCompile().install()
    setup(
        long_description=long_description(),
        long_description_content_type="text/markdown",
        packages=[*find_packages(include=["purify_engine*"], exclude=["purify_engine.kernels*"]), "purify_engine.kernels"],
        package_dir={"purify_engine.kernels": "kernels"},
        ext_modules=[cpp_extension(), *cuda_extensions()],
        cmdclass={"build_ext": BuildExtension},
    )
