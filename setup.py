"""The C++ extension, `purify_engine._C`. Everything else about the package is in pyproject.toml.

It needs a C++17 compiler with OpenMP and pybind11, and neither torch nor a GPU. Where it cannot be built the package installs
without it and runs on the reference in plain PyTorch; `purify-engine doctor` says which.
"""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension, build_ext
from setuptools import find_packages, setup

# -fno-math-errno and -fno-trapping-math let loops with a square root or a choice become vectors; results stay IEEE.
FLAGS = ["-O3", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-Wall", "-Wextra"]
AVX2_FLAGS = ["-mavx2", "-mfma"]  # for `*_avx2.cpp` only: chosen at run time, never because of the machine that builds
IS_X86 = platform.machine().lower() in ("x86_64", "amd64")


class BuildExtension(build_ext):
    """Compiles every `*_avx2.cpp` with the flags of its instruction set."""

    def build_extensions(self) -> None:
        compile_one = self.compiler._compile

        def compile_for_its_instruction_set(obj: str, src: str, ext: str, cc_args: Any, flags: list[str], pp_opts: Any) -> None:
            compile_one(obj, src, ext, cc_args, flags + AVX2_FLAGS if src.endswith("_avx2.cpp") else flags, pp_opts)

        self.compiler._compile = compile_for_its_instruction_set
        super().build_extensions()


def extension() -> Pybind11Extension:
    """The extension, with the sources that this processor's family can use."""
    sources = [str(path) for path in sorted(Path("csrc").glob("*.cpp")) if IS_X86 or not path.stem.endswith("_avx2")]
    return Pybind11Extension(
        "purify_engine._C",
        sources,
        depends=[str(path) for path in sorted(Path("csrc").glob("*.h"))],
        define_macros=[("PURIFY_HAS_AVX2", "1")] if IS_X86 else [],
        extra_compile_args=FLAGS,
        extra_link_args=["-fopenmp"],
        cxx_std=17,
        optional=True,
    )


ParallelCompile().install()
setup(
    packages=[*find_packages(include=["purify_engine*"], exclude=["purify_engine.kernels*"]), "purify_engine.kernels"],
    package_dir={"purify_engine.kernels": "kernels"},
    ext_modules=[extension()],
    cmdclass={"build_ext": BuildExtension},
)
