"""Every kernel compiled ahead of time, as a GPU would run it, and what its machine code says. No GPU is needed.

`python -m tests.kernels.aot` compiles everything for every architecture, prints what each takes, and fails where one is at fault.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import torch
from torch import nn

from purify_engine import UNet, UNetConfig, ops
from purify_engine.models.published import ADM_IMAGENET256, DDPM_CIFAR10, DDPMPP_CIFAR10
from purify_engine.ops import _registry, switches
from purify_engine.presets import load_networks
from tests.kernels import slab_code

Scope = Literal["each kernel", "listed", "launched"]  # one variant of each, what their files list, and what networks launch, too

ROOT = Path(__file__).parent.parent.parent
ARCHITECTURES = ((9, 0), (8, 0), (8, 9), (10, 0))
MATRIX = {(8, 0): r"\bHMMA\.", (8, 9): r"\bHMMA\.", (9, 0): r"\bHGMMA\.", (10, 0): r"\bUTC\w*MMA\b"}
SMALL_MATRIX = r"\bHMMA\."  # what multiplies fewer than the 64 rows of a warpgroup, on any of them


def kernel_files() -> list[str]:
    """The stems of kernels/*.py that hold kernels."""
    return sorted(path.stem for path in (ROOT / "kernels").glob("[!_]*.py"))


def networks() -> list[tuple[UNetConfig, int]]:
    """What is shipped and what is benchmarked, with the batches that choose other tiles."""
    digits = load_networks("digits")[0].unet.config
    return [(digits, 1), *((net, batch) for net in (DDPM_CIFAR10, DDPMPP_CIFAR10) for batch in (1, 64)), (ADM_IMAGENET256, 1)]


def variants(capability: tuple[int, int], scope: Scope) -> list[Any]:
    """What is compiled for an architecture, each variant once."""
    from purify_engine.kernels import _launch

    with mock.patch.object(_launch, "assumed", capability):
        found = [v for stem in kernel_files() for v in importlib.import_module(f"purify_engine.kernels.{stem}").variants()]
        if scope == "each kernel":
            return list({variant.kernel: variant for variant in reversed(found)}.values())
        if scope == "launched":
            found += [variant for config, batch in networks() for variant in launched_by(config, batch)]
        return list({str(variant): variant for variant in found}.values())


def launched_by(config: UNetConfig, batch: int) -> list[Any]:
    """The variants that a U-Net in bfloat16, channels_last, launches on `batch` images: its own forward pass, without numbers."""
    from purify_engine.kernels._launch import Launch

    with torch.device("meta"):
        unet = UNet(config).eval().to(torch.bfloat16, memory_format=torch.channels_last)
        x = torch.empty(batch, config.in_channels, config.image_size, config.image_size, dtype=torch.bfloat16)
        timestep = torch.empty(1)
    found: list[Any] = []
    launchable = mock.patch.dict(_registry.ORDER, meta=("triton",))
    noted = mock.patch.object(Launch, "run", lambda launch: found.append(launch.variant("network")))
    with launchable, ops.backend("triton"), noted, switches.anywhere(), torch.no_grad(), _in_channels_last():
        unet(x.contiguous(memory_format=torch.channels_last), timestep)
    return found


@contextmanager
def _in_channels_last() -> Iterator[None]:
    """Convolutions put out what cuDNN's do, and the meta device's do not."""

    def as_cudnn(convolve: Any) -> Any:
        return lambda *given, **how: convolve(*given, **how).contiguous(memory_format=torch.channels_last)

    patched = {name: as_cudnn(getattr(nn.functional, name)) for name in ("conv2d", "conv_transpose2d")}
    with mock.patch.multiple(nn.functional, **patched):
        yield


def compiled(variant: Any, capability: tuple[int, int]) -> dict[str, Any]:
    """Compile one variant and read its machine code: its its resources, what it computes with, and `faults`."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = variant.kernel.arg_names
    types = {name: variant.signature[name] for name in names}
    # Tensors begin on 16 bytes, and so do their views: channels come in multiples of 8.
    aligned = [place for place, name in enumerate(names) if types[name].startswith("*") or types[name].endswith(":16")]
    source = ASTSource(
        fn=variant.kernel,
        signature={name: kind.removesuffix(":16") for name, kind in types.items()},
        constexprs=variant.constexprs,
        attrs={(place,): [["tt.divisibility", 16]] for place in aligned},
    )
    began = time.perf_counter()
    options = {"num_warps": variant.num_warps, "num_stages": variant.num_stages, "enable_fp_fusion": variant.fp_fusion}
    target = GPUTarget("cuda", 10 * capability[0] + capability[1], 32)
    kernel = triton.compile(source, target=target, options=options)
    usage, code = machine_code(kernel.asm["cubin"], reads_code(variant, kernel, capability))
    registers, stack = (int(number) for number in re.search(r"REG:(\d+) STACK:(\d+)", usage).groups())  # type: ignore[union-attr]
    found = {
        "kernel": variant.kernel.__name__,
        "capability": list(capability),
        "registers": registers,
        "stack": stack,
        "shared": kernel.metadata.shared,
        "types": sorted({kind for kind in variant.signature.values() if kind.startswith("*")}),
        "approximations": sorted(set(re.findall(r"\b(?:ex2|lg2|sin|cos|tanh|r?sqrt)\.approx", kernel.asm["ptx"]))),
        "contracted": len(re.findall(r"\b[FD]FMA2?\b", code)),
        "fused": len(re.findall(r"\bfma\.", kernel.asm["ptx"])),  # before divisions and roots are spelt out
        "seconds": round(time.perf_counter() - began, 1),
        "variant": str({**variant.constexprs, "num_warps": variant.num_warps, "num_stages": variant.num_stages}),
    }
    found["per_element"] = slab_code.per_element(variant, code)
    return {**found, "multiplies": bool(multiplies(kernel)), "faults": list(faults(variant, found, kernel, code, capability))}


def faults(variant: Any, found: dict[str, Any], kernel: Any, code: str, capability: tuple[int, int]) -> Iterator[str]:
    """What must not be: spills, more shared memory than there is, products outside the matrix units, norms that are slow."""
    from purify_engine.kernels import _tiles

    if found["stack"]:  # spills show here; LOCAL stays 0 even then
        yield f"spills: a stack of {found['stack']} bytes"
    if found["shared"] > (most := _tiles.shared_memory(capability)):
        yield f"{found['shared']} bytes of shared memory, of {most}"
    rows = multiplies(kernel)
    if rows and not re.search(MATRIX[capability] if min(rows) >= 64 else SMALL_MATRIX, code):
        yield f"no {MATRIX[capability]} in its code, though it multiplies {min(rows)} rows at a time"
    if capability == (9, 0):
        yield from slab_code.faults(variant, code)


def multiplies(kernel: Any) -> list[int]:
    """The rows of each matrix product of 16-bit operands in a kernel."""
    return [int(rows) for rows in re.findall(r"= tt\.dot .*: tensor<(\d+)x\d+xb?f16>", kernel.asm["ttir"])]


def reads_code(variant: Any, kernel: Any, capability: tuple[int, int]) -> bool:
    """Is there anything to look for in its instructions? Listing them takes longer than compiling the kernel."""
    is_slab = capability == (9, 0) and slab_code.elements(variant) is not None
    return is_slab or bool(multiplies(kernel)) or variant.kernel.__name__ == "_to_images_kernel"


def machine_code(cubin: bytes, disassemble: bool) -> tuple[str, str]:
    """(resource usage, disassembly or nothing), by the cuobjdump of Triton's wheel."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        asked = ["--dump-resource-usage", "--dump-sass"][: 1 + disassemble]
        told = [subprocess.run([tool, option, file.name], capture_output=True, text=True, check=True).stdout for option in asked]
    return told[0], told[1] if disassemble else ""


def compile_all(
    architectures: dict[tuple[int, int], Scope], cache: Path | None = None, processes: int = 2
) -> list[dict[str, Any]]:
    """A report for every variant within the scope of its architecture, from processes without the interpreter.

    What `cache` (Triton's own, if None) holds by its content is not compiled again.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    environment.pop("TRITON_INTERPRET", None)
    if cache is not None:
        environment["TRITON_CACHE_DIR"] = str(cache)
    codes = [f"from tests.kernels import aot; aot.compile_share({architectures}, {n}, {processes})" for n in range(processes)]
    commands = [[sys.executable, "-c", code] for code in codes]
    running = [subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True) for command in commands]
    outputs = [process.communicate()[0] for process in running]
    assert not any(process.returncode for process in running), "the compilation stopped"
    return [json.loads(line) for output in outputs for line in output.splitlines()]


def compile_share(architectures: dict[tuple[int, int], Scope], first: int, processes: int) -> None:
    """Compile every `processes`-th variant; print a line of JSON each."""
    jobs = [(variant, capability) for capability, scope in architectures.items() for variant in variants(capability, scope)]
    for variant, capability in jobs[first::processes]:
        print(json.dumps(compiled(variant, capability)), flush=True)


if __name__ == "__main__":
    reports = compile_all(dict.fromkeys(ARCHITECTURES, "launched"))
    for report in reports:
        print(json.dumps(report))
    sys.exit(any(report["faults"] for report in reports))
