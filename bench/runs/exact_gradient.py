"""What a step of the exact attack costs, by the engine and by plain autograd that stores everything: time and peak memory.

    python -m bench exact-gradient --batch 8 --steps 7

Purifier and classifier have the architectures of the recipe cifar10-small and random weights; both ways see the same noise, and
their gradients are compared before anything is timed. A gradient is one draw's: PGD of 20 steps over EOT of 8 takes 160 an image.
"""

from __future__ import annotations

from typing import Any

import torch

from bench.core import process_memory
from bench.core.run import Run, begin, parser
from bench.subjects.exact_gradient import Gradient, by_engine, by_storing, subject
from purify_engine.benchmark.harness import clocks, interleaved

WAYS = {"engine": by_engine, "autograd that stores everything": by_storing}
FULL = {"images": 512, "pgd": 20, "eot": 8}  # the attack that a figure is scaled to
APART = 1e-3  # relative distance that rounding may put between the two gradients in float32


def main(words: list[str]) -> int:
    options = parser("exact-gradient", __doc__)
    options.add_argument("--batch", type=int, default=8, help="images")
    options.add_argument("--steps", type=int, default=7, help="of the purifier")
    options.add_argument("--threads", type=int, help="of a CPU; PyTorch's own number by default")
    options.add_argument("--rounds", type=int, default=5, help="of each, in turn")
    run, chosen = begin("exact-gradient", options, words)
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    batch, steps = (2, 2) if chosen.toy else (chosen.batch, chosen.steps)
    purifier, classifier = subject(steps, run.device, toy=chosen.toy)
    side, channels = purifier.denoiser.config.image_size, purifier.denoiser.config.in_channels
    images = torch.rand(batch, channels, side, side, generator=torch.Generator().manual_seed(0), device="cpu").to(run.device)
    labels = torch.arange(batch, device=run.device) % 10
    ways = {name: way(purifier, classifier, images, labels) for name, way in WAYS.items()}
    ours, theirs = (way().double() for way in ways.values())
    apart = float((ours - theirs).norm() / theirs.norm())
    run.check("gradients", apart <= APART, f"{apart:.1e} apart, of {APART:g} allowed", apart=apart)
    peaks = {name: peak(way, run.device) for name, way in ways.items()}
    rounds = 1 if chosen.toy else chosen.rounds
    timings = interleaved(ways, clocks(run.device)["warm"], seconds=0.0, least=rounds, warm_up=0)  # each has run twice by now
    about: dict[str, Any] = {"batch": batch, "steps": steps, "threads": torch.get_num_threads()}
    for name, timing in timings.items():
        an_image = timing.median / batch
        says = f"{name:<34} {1000 * an_image:9.1f} ms an image and gradient, {peaks[name] / 2**20:8.0f} MiB at the peak"
        run.figure(says, kind="exact-gradient", way=name, an_image=an_image, peak=peaks[name], **about, **timing.record())
    summed_up(run, timings["engine"].median / batch, {name: timing.median for name, timing in timings.items()}, peaks)
    return run.close()


def summed_up(run: Run, an_image: float, seconds: dict[str, float], peaks: dict[str, int]) -> None:
    """The two ratios, and the time of the whole attack that follows from it."""
    ours, theirs = WAYS
    gradients = FULL["images"] * FULL["pgd"] * FULL["eot"]
    run.headline("exact gradient: time beside autograd's", round(seconds[ours] / seconds[theirs], 3))
    run.headline("exact gradient: memory beside autograd's", round(peaks[ours] / peaks[theirs], 3))
    hours = an_image * gradients / 3600
    run.headline("exact gradient: hours of the full attack, scaled", round(hours, 2))
    text = f"{seconds[ours] / seconds[theirs]:.2f} of the time and {peaks[ours] / peaks[theirs]:.2f} of the memory; "
    text += f"{FULL['images']} images x PGD-{FULL['pgd']} x EOT-{FULL['eot']}: {gradients:,} gradients, {hours:.1f} hours"
    run.figure(text, kind="exact-attack", scaled=True, gradients=gradients, hours=hours, **FULL)


def peak(way: Gradient, device: torch.device) -> int:
    """The bytes that one gradient takes at its peak beyond what is there before it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        way()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    before = process_memory.settled()
    process_memory.forget_peak()
    way()
    return max(1, process_memory.peak() - before)
