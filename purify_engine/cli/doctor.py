"""`purify-engine doctor`: what is installed, which engines run, and whether they compute what the specification says."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from purify_engine import __version__
from purify_engine.cli.console import say
from purify_engine.cli.loading import Device

if TYPE_CHECKING:
    from purify_engine.ops import Op
    from purify_engine.purifier import GuidedPurifier
    from purify_engine.testing.cases import Case

CHECK_FAILED = 4
EVERY = 7  # of each op's cases, one in so many: a second in all; the tests run them all
PACKAGES = ("torch", "numpy", "safetensors", "pillow", "scipy", "scikit-learn", "huggingface_hub")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. `ok` is None where there is nothing to judge."""

    name: str
    says: str
    ok: bool | None = None


def doctor(
    *, gpu: bool = False, device: Device = "auto", json: Annotated[bool, Parameter(negative="")] = False
) -> int:
    """Check this installation: versions, the extension, every op against its specification, the embedded purifier.

    The ops are checked on the CPU, the purifier on DEVICE, in float32.

    Parameters
    ----------
    gpu:
        Say what a GPU would run, and fail where something is missing for it. `make gpu` in a checkout runs and times it.
    json:
        Print the result as one JSON line.
    """
    findings = list(gpu_findings() if gpu else installation_findings(device))
    healthy = all(finding.ok is not False for finding in findings)
    text = "\n".join(f"{_mark(finding)} {finding.name}: {finding.says}" for finding in findings)
    say({"healthy": healthy, "findings": [asdict(finding) for finding in findings]}, text, as_json=json)
    return 0 if healthy else CHECK_FAILED


def installation_findings(device: str = "auto") -> Iterator[Finding]:
    """Everything but the kernels for GPUs."""
    yield Finding("purify_engine", __version__)
    yield Finding("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    yield from (Finding(package, _version(package)) for package in PACKAGES)
    yield extension_finding()
    yield dispatcher_finding()
    yield from op_findings()
    yield from embedded_findings()
    yield from purifier_findings(device)


def extension_finding() -> Finding:
    """Whether the C++ ops are there, what they run on, and with how many threads. Being absent is no fault."""
    import torch

    from purify_engine import ops

    if not ops.capability().cpp:
        return Finding("extension", "not built, so PyTorch runs alone; `pip install -e .` with a C++ compiler builds it")
    chosen, offered = ops.instruction_set(), ", ".join(ops.instruction_sets())
    return Finding("extension", f"runs on {chosen} (this CPU offers {offered}), {torch.get_num_threads()} threads", True)


def dispatcher_finding() -> Finding:
    """Whether small ops may go past PyTorch's dispatcher. Where they may not they are slower, and as right."""
    from purify_engine import ops

    if missing := ops.missing():
        names = ", ".join(missing)
        says = f"warning: this PyTorch lacks {names}, so every op takes its dispatcher, which costs microseconds"
        return Finding("dispatcher", says)
    forbidden = ops.is_bypass_forbidden()
    return Finding("dispatcher", "taken by every op, as asked for" if forbidden else "left out where nothing needs to see an op")


def op_findings() -> Iterator[Finding]:
    """Every op, by the engines that its cases get on a CPU, within the yardstick of its specification."""
    from purify_engine.ops import OPS
    from purify_engine.testing.cases import cases

    for op in OPS.values():
        looked_at = [case for case in cases(op.name) if str(case.dtype) == "torch.float32"][::EVERY]
        wrong = [f"{case}: {fault}" for case in looked_at if (fault := disagreement(op, case))]
        engines = Counter(op.resolve(*case.arguments(), **case.keywords)[0] for case in looked_at)
        agree = ", ".join(f"{engine}: {count} cases agree" for engine, count in engines.items())
        yield Finding(f"op {op.name}", wrong[0] if wrong else agree, not wrong)


def disagreement(op: Op, case: Case) -> str:
    """What is wrong with the op's result on a case; nothing if it is right. The specification in float64 is the truth."""
    from purify_engine.testing.agreement import assert_agrees, judge_of

    try:
        engine, launch = op.resolve(*case.arguments(), **case.keywords)
        assert_agrees(case, launch(), op.reference, judge_of(op, engine))
    except (AssertionError, RuntimeError) as fault:
        return next(iter(str(fault).splitlines()), "differs")
    return ""


def embedded_findings() -> Iterator[Finding]:
    """Every embedded purifier: its images, its presets, and whether its weights are those that were packed."""
    from purify_engine.folders import own_presets, read_config
    from purify_engine.models.checkpoints.network import sha256
    from purify_engine.presets import list_purifiers, resolve

    for name in list_purifiers():
        try:
            folder = resolve(name)
            config = read_config(folder)
            size, presets = config["unet"]["image_size"], ", ".join(own_presets(config, folder)) or "none of its own"
            hashes = config.get("weights", {})
            damaged = [part for part, known in hashes.items() if sha256(folder / f"{part}.safetensors") != known]
        except (OSError, ValueError) as broken:
            yield Finding(f"embedded {name}", str(broken), False)
            continue
        says = f"images of {size}x{size} ({config['purifier'].get('sizes', 'exact')} for others), presets: {presets}"
        if damaged:
            says = f"{damaged[0]}.safetensors is not the file that was packed: install it again"
        yield Finding(f"embedded {name}", says, not damaged)


def purifier_findings(device: str = "auto") -> Iterator[Finding]:
    """Purify a little with the embedded purifier, and look at what must hold."""
    from purify_engine import devices
    from purify_engine.purifier import GuidedPurifier

    where = devices.torch_device(device)
    yield Finding("device", f"{device} is {where}; purify and bench take {devices.precision_on(where)} networks there", True)
    try:
        purifier = GuidedPurifier.from_pretrained("digits", device=where, precision="float32")
    except (OSError, ValueError) as broken:
        yield Finding("purifier", str(broken), False)
        return
    with devices.without_tf32():  # so that a batch changes a pixel by float32's own rounding
        yield from _purified_findings(purifier)


def _purified_findings(purifier: GuidedPurifier) -> Iterator[Finding]:
    import torch

    network = purifier.denoiser.config
    device = purifier.device
    images = torch.linspace(0, 1, 4 * network.in_channels * network.image_size**2, device=device)
    images = images.reshape(4, network.in_channels, network.image_size, network.image_size)
    ids = torch.arange(4, device=device)
    with torch.no_grad():
        together = purifier(images, ids=ids)
        apart = torch.cat([purifier(images[i : i + 1], ids=ids[i : i + 1]) for i in range(4)])
    in_range = bool(((together >= 0) & (together <= 1)).all())
    yield Finding("purifier", "digits: purified images lie in [0, 1]", in_range)
    difference = float((together - apart).abs().max())
    yield Finding("noise", f"the batch changes a pixel by {difference:.1e} at most", difference < 1e-4)
    leaf = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(purifier(leaf, ids=ids).square().sum(), leaf)
    flows = bool(gradient.isfinite().all() and gradient.abs().max() > 0)
    yield Finding("gradient", "flows back to the images, finite", flows)


def gpu_findings() -> Iterator[Finding]:
    """What stands between this installation and a GPU."""
    import torch

    from purify_engine.ops import OPS

    built = torch.version.cuda or torch.version.hip
    yield Finding("PyTorch", f"{torch.__version__}, " + (f"built for {built}" if built else "a build for CPUs only"), bool(built))
    found = torch.cuda.is_available()
    yield Finding("device", torch.cuda.get_device_name() if found else "PyTorch finds no GPU on this machine", found)
    for op in OPS.values():
        engines = {engine: op.engines[engine] for engine in ("triton", "cuda")}
        says = "; ".join(engine if callable(kernel) else f"{engine}: {kernel}" for engine, kernel in engines.items())
        missing = "is not installed" in says or "is not built" in says  # else it does without by design
        yield Finding(op.name, says, any(callable(kernel) for kernel in engines.values()) or (False if missing else None))


def _mark(finding: Finding) -> str:
    return {None: " ", True: "✓", False: "✗"}[finding.ok]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
