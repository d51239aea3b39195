"""The sentence of `python -m bench exact-gradient`: what a step of the exact attack costs beside plain autograd."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bench.report.lines import Machine, by_machine

KIND = "exact-gradient"
ENGINE, PLAIN = "engine", "autograd that stores everything"
NOT_YET = "Not measured yet: `python -m bench exact-gradient` writes it."


def exact_gradient(results: Path) -> str:
    """Every CPU's latest run that has both ways."""
    return by_machine(_measured, results, on_gpu=False, otherwise=NOT_YET, kind=KIND)


def _measured(machine: Machine) -> str:
    pair = machine.together((ENGINE, PLAIN), kind=KIND, by="way")
    if pair is None:
        return ""
    ours, plain = pair
    whole = machine.latest("pgd", "eot", kind="exact-attack", run=ours["run"])
    said = (
        f"{1e3 * ours['an_image']:.0f} ms an image and gradient at {ours['steps']} steps and {ours['batch']} images, "
        f"{ours['an_image'] / plain['an_image']:.2f} of the time and {ours['peak'] / plain['peak']:.2f} of the memory of {PLAIN} "
        f"({ours['peak'] / 2**20:,.0f} MiB beside {plain['peak'] / 2**20:,.0f})."
    )
    for each in whole:
        said += f" {each['images']} images × PGD-{each['pgd']} × EOT-{each['eot']} take {each['hours']:.1f} hours so, scaled."
    return said


FIGURES: dict[str, Callable[[Path], str]] = {"exact-gradient": exact_gradient}
