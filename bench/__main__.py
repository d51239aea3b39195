"""`python -m bench NAME ...`: one measurement, check or report."""

from __future__ import annotations

import importlib
import sys
from typing import NamedTuple


class Command(NamedTuple):
    """A module with a function `main(words) -> exit status`, imported only when it is asked for: some need more than others."""

    module: str
    says: str


COMMANDS = {
    "cpu": Command("bench.runs.cpu", "the engine on a CPU beside PyTorch, ONNX Runtime and OpenVINO"),
    "ops": Command("bench.runs.ops", "every op on every engine of this device"),
    "loop": Command("bench.runs.loop", "guided steps and whole purifications beside their opponents"),
    "precompile": Command("bench.runs.precompile", "compile what the checks and guided steps launch in Triton, on all cores"),
    "switches": Command("bench.runs.switches", "what each faster way on GPUs brings, and what it does to images and verdicts"),
    "launches": Command("bench.runs.launches", "a guided step's launches, counted without a GPU, and what each faster way saves"),
    "profile": Command("bench.runs.profile", "a guided step's time and launches by groups of kernels"),
    "compiled": Command("bench.runs.compiled", "guided steps under each of torch.compile's modes, compiled side by side"),
    "whole": Command("bench.runs.whole", "whole purifications: DiffPure's loop beside the engine, at as many steps and at few"),
    "offline": Command("bench.runs.offline", "what an offline run costs beside its purifier, and threads beside other work"),
    "cold-start": Command("bench.runs.cold_start", "from a cold process to the first purified batch"),
    "fp8": Command("bench.runs.fp8", "cuDNN's fp8 convolutions beside those in bf16"),
    "host": Command("bench.runs.host", "the host's time for a step of the loop without graphs, beside eager PyTorch's"),
    "probe": Command("bench.runs.probe", "what this GPU, PyTorch and cuDNN can do by themselves"),
    "check-ops": Command("bench.runs.check_ops", "every kernel of every op against float64"),
    "check-graph": Command("bench.runs.check_graph", "a captured graph against the loop, bit for bit"),
    "check-gradient": Command("bench.runs.check_gradient", "the exact gradient against the CPU's in float64"),
    "guide-activation": Command("bench.runs.guide_activation", "what guides with ReLU hide from attacks, and what SiLU costs"),
    "ablation": Command("bench.runs.ablation", "a purifier's settings varied one at a time, on validation images"),
    "exact-gradient": Command("bench.runs.exact_gradient", "the exact attack's gradient beside autograd that stores everything"),
    "train": Command("bench.runs.train", "a recipe trained within minutes, to be gone on with in the next run"),
    "evaluate": Command("bench.runs.evaluate", "a purifier evaluated within minutes, to be gone on with in the next run"),
    "pieces": Command("bench.runs.pieces", "data sets and trainings in pieces, to and from a machine that takes only so much"),
    "choose-presets": Command("bench.tuning.presets", "faithful, balanced and fast, by the ablation over steps"),
    "gpu": Command("bench.gpu", "all of these that concern a GPU, each within its time"),
    "tune-conv3x3": Command("bench.tuning.conv3x3_tiles", "the fastest tile of the GPU's 3x3 convolution"),
    "tune-norm": Command("bench.tuning.norm_tiles", "the fastest tile of the GPU's norm in 16 bits"),
    "tune-attention": Command("bench.tuning.attention_tiles", "the fastest tile of the GPU's attention, beside PyTorch's"),
    "tune-winograd": Command("bench.tuning.winograd_ways", "the fastest way to convolve 3x3 on this CPU"),
    "tune-guidance": Command("bench.tuning.guidance", "which guidance the embedded models have, and how strong"),
    "figures": Command("bench.report.figures", "write the tables of README.md and docs/ from bench/results"),
    "api": Command("bench.report.api", "write docs/api.md from the signatures and docstrings of the source"),
    "tour": Command("bench.report.tour", "run docs/tour.ipynb from top to bottom, and keep what its cells put out"),
    "digits-picture": Command("bench.report.digits_picture", "draw the README's picture"),
}


def main(words: list[str]) -> int:
    """Run one command; without one, or with another name, say what there is."""
    name, *rest = words or [""]
    if name not in COMMANDS:
        known = "\n".join(f"  {command:<16}{about.says}" for command, about in COMMANDS.items())
        print(f"usage: python -m bench NAME ...     (NAME --help says more)\n\n{known}")
        return 0 if name in ("-h", "--help") else 2
    return importlib.import_module(COMMANDS[name].module).main(rest)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
