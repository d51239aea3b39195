"""What this GPU, this PyTorch and this cuDNN can do before anything of ours runs: the ceilings, and where a step's time goes.

    python -m bench probe     appends to bench/results/probe-MACHINE.jsonl

Needs PyTorch and Triton; the last two measures also the networks' own imports, and say so where those are missing.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

from bench.core.run import Run, begin, parser
from bench.subjects.convolutions import CONVOLUTIONS, TOY, Convolution
from purify_engine.benchmark.harness import Clock, CudaClock, interleaved, wall_clock
from purify_engine.benchmark.machine import ceilings

BATCHES = {"adm-imagenet256": (1, 8)}  # the others:
CIFAR_BATCHES = (1, 64, 256)
KERNELS = 500  # tiny ones in a row, to see what lies between them
COMPILE_LEAST = 150.0  # seconds that must be left for max-autotune to be tried


def main(words: list[str]) -> int:
    run, _ = begin("probe", parser("probe", __doc__), words)
    torch.backends.cudnn.benchmark = True
    measures = (ceiling, gaps, convolutions, kernel_counts, compile_baseline)
    for measure in measures:
        try:
            measure(run)
        except ImportError as missing:
            run.note(measure.__name__, f"not measured: {missing}; `make gpu-carry` fetches it")
        except torch.OutOfMemoryError:
            run.note(measure.__name__, "not measured: out of memory")
    return run.close()


def ceiling(run: Run) -> None:
    """The copy's rate and the matrix product's."""
    rates = ceilings(run.device, toy=run.toy)
    run.figure("  ".join(f"{name} {rate:.3g}/s" for name, rate in rates.items()), kind="ceilings", **rates)


def gaps(run: Run) -> None:
    """Seconds from one tiny kernel to the next, launched one by one, and replayed from a graph."""
    x = torch.zeros(32, device=run.device)

    def work() -> None:
        for _ in range(KERNELS):
            x.add_(1)

    calls: dict[str, Callable[[], Any]] = {"launched": work}
    if run.device.type == "cuda":
        calls["graph"] = _captured(work)
    for name, timing in interleaved(calls, _clock(run), seconds=0 if run.toy else 2.0, least=3).items():
        each = timing.median / KERNELS
        run.figure(f"{name}: {1e6 * each:.2f} µs a kernel", kind="gap", how=name, seconds_per_kernel=each)


def _captured(work: Callable[[], None]) -> Callable[[], None]:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def convolutions(run: Run) -> None:
    """cuDNN's 3x3 convolutions of every network, cold: bf16 channels_last, and float32 NCHW as eager PyTorch runs it (TF32)."""
    on_gpu = run.device.type == "cuda"
    ways = {"bf16 channels_last": (torch.bfloat16, torch.channels_last)} if on_gpu else {}
    ways["float32"] = (torch.float32, torch.contiguous_format)
    for network, convs in (TOY if not on_gpu else CONVOLUTIONS).items():
        for batch in BATCHES.get(network, CIFAR_BATCHES if on_gpu else (1,)):
            totals = dict.fromkeys(ways, 0.0)
            for conv in convs:
                calls = {name: _convolution(conv, batch, *way, run.device) for name, way in ways.items()}
                for name, timing in interleaved(calls, _clock(run, queued=True), seconds=0 if run.toy else 0.2, least=5).items():
                    totals[name] += conv.repeats * timing.median
                    flops = conv.flops * batch
                    facts = {"network": network, "batch": batch, "how": name, "conv": list(conv), "flops": flops}
                    run.records(kind="conv", case=f"{network} {conv}", **facts, **timing.record())
            work = batch * sum(conv.repeats * conv.flops for conv in convs)
            for name, seconds in totals.items():
                text = f"{network}, batch {batch}, {name}: all 3x3 in {1e3 * seconds:.3g} ms, {work / seconds / 1e12:.3g} TFLOP/s"
                run.figure(text, kind="convs", network=network, batch=batch, how=name, seconds=seconds, flops=work)


def _convolution(
    conv: Convolution, batch: int, dtype: torch.dtype, layout: torch.memory_format, device: torch.device
) -> Callable[[], torch.Tensor]:
    x = torch.randn(batch, conv.channels, conv.size, conv.size, device=device, dtype=dtype).to(memory_format=layout)
    weight = torch.randn(conv.out_channels, conv.channels, 3, 3, device=device, dtype=dtype) / (9 * conv.channels) ** 0.5
    return partial(F.conv2d, x, weight.to(memory_format=layout), stride=conv.stride, padding=1)


def kernel_counts(run: Run) -> None:
    """How many kernels one guided step launches, eager and ours, counted by the profiler."""
    from bench.subjects.purification import engine, images_for
    from purify_engine.benchmark.eager_baseline import BASELINES

    names = ("eager fp32", "eager bf16 channels_last") if run.device.type == "cuda" else ("eager fp32",)
    for network, purifier in _purifiers(run):
        images = images_for(purifier, 1)
        ours = partial(engine, execution="loop", low=run.device.type == "cuda")
        makers: dict[str, Callable[[Any], Any]] = {**{name: BASELINES[name] for name in names}, "engine loop": ours}
        for name, make in makers.items():
            one, two = (_kernels(run, make(purifier.configured(num_steps=steps)), images) for steps in (1, 2))
            what = "kernels" if run.device.type == "cuda" else "operators"
            run.figure(f"{network}, {name}: {two - one} {what} a step", kind=what, network=network, variant=name, count=two - one)


def _kernels(run: Run, variant: Any, images: torch.Tensor) -> int:
    """Device kernels of one call; on a CPU, the operators that it calls."""
    on_gpu = run.device.type == "cuda"
    with torch.no_grad():
        variant(images)
        with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as seen:
            variant(images)
            if on_gpu:
                torch.cuda.synchronize()
    kind = torch.autograd.DeviceType.CUDA if on_gpu else torch.autograd.DeviceType.CPU
    return sum(event.device_type == kind and "Memset" not in event.name for event in seen.events())


def _purifiers(run: Run) -> list[tuple[str, Any]]:
    from bench.subjects.purification import config
    from purify_engine.benchmark.networks import GUIDES, NETWORKS, TOY_GUIDE, TOY_NETWORKS, random_purifier

    large = run.device.type == "cuda"
    networks, guide = (NETWORKS, GUIDES["resnet18"]) if large else (TOY_NETWORKS, TOY_GUIDE)
    names = [name for name in networks if name != "adm-imagenet256"]
    return [(name, random_purifier(networks[name], guide, config(10), device=run.device, execution="loop")) for name in names]


def compile_baseline(run: Run) -> None:
    """One U-Net pass under torch.compile, beside eager: what fusion and graphs give without us."""
    from purify_engine.benchmark.networks import NETWORKS, TOY_NETWORKS, with_random_weights
    from purify_engine.benchmark.plain_unet import PlainUNet
    from purify_engine.models.unet import UNet

    on_gpu = run.device.type == "cuda"
    name, how = ("ddpm-cifar10", {"mode": "max-autotune"}) if on_gpu else ("toy-ddpm", {"backend": "eager"})
    network = (NETWORKS | TOY_NETWORKS)[name]
    dtype = torch.bfloat16 if on_gpu else torch.float32
    with torch.device(run.device):
        unet = with_random_weights(PlainUNet(UNet(network)))
    unet = unet.to(dtype).to(memory_format=torch.channels_last).eval().requires_grad_(False)  # type: ignore[call-overload]
    for batch in (1, 64) if on_gpu else (1,):
        if run.seconds_left < COMPILE_LEAST:
            run.note(f"torch.compile, batch {batch}", f"not measured: fewer than {COMPILE_LEAST:.0f} s left")
            continue
        compiled = torch.compile(unet, fullgraph=True, dynamic=False, **how)  # type: ignore[call-overload]
        size = network.image_size
        x = torch.randn(batch, 3, size, size, device=run.device, dtype=dtype).to(memory_format=torch.channels_last)
        t = torch.full((batch,), 50.0, device=run.device)
        with torch.no_grad():
            calls = {"eager": partial(unet, x, t), "torch.compile": partial(compiled, x, t)}
            in_double = partial(copy.deepcopy(unet).double(), x.double(), t.double())
            agreeing = _agreeing(run, f"U-Net of {name}, batch {batch}", calls, in_double)
            timings = interleaved(agreeing, _clock(run), seconds=0 if run.toy else 2.0, least=3)
        for variant, timing in timings.items():
            text = f"U-Net of {name}, batch {batch}, {variant}: {1e3 * timing.median:.3g} ms"
            run.figure(text, kind="unet", network=name, batch=batch, variant=variant, **timing.record())


def _agreeing(
    run: Run, label: str, calls: dict[str, Callable[[], torch.Tensor]], in_double: Callable[[], torch.Tensor]
) -> dict[str, Callable[[], object]]:
    """Those whose result is near float64; the first is the honest one."""
    from bench.core.comparison import OPPONENT, Variant, compare, sound, within

    truth, honest = in_double(), next(iter(calls.values()))()

    def variant(call: Callable[[], torch.Tensor]) -> Variant:
        return Variant(call, lambda: compare(call(), honest, truth, within(OPPONENT)))

    agreeing = sound(run, label, {name: partial(variant, call) for name, call in calls.items()})
    return {name: agreed.call for name, agreed in agreeing.items()}


def _clock(run: Run, *, queued: bool = False) -> Clock:
    return CudaClock(cold=queued, queued=queued) if run.device.type == "cuda" else wall_clock
