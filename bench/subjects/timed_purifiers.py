"""What is timed as a whole purification: the setting's networks, and a variant's distance to float64 before it is timed."""

from __future__ import annotations

from typing import Any

from bench.core.comparison import Finding
from bench.core.run import Run
from bench.opponents.compiled import CompiledPurifier
from bench.subjects.purification import Comparison, PurificationSetting
from purify_engine import ops
from purify_engine.benchmark.networks import GUIDES, NETWORKS, TOY_GUIDE, TOY_NETWORKS, random_purifier
from purify_engine.purifier import GuidedPurifier
from purify_engine.types import Images

TOYS = dict(zip(NETWORKS, TOY_NETWORKS.values(), strict=True))


def purifier_of(run: Run, setting: PurificationSetting) -> GuidedPurifier:
    """The setting's networks with random weights, or toys in their place."""
    network, guide = (TOYS[setting.network], TOY_GUIDE) if run.toy else (NETWORKS[setting.network], GUIDES[setting.guide])
    with ops.backend("reference"):  # what is calibrated by PyTorch waits for no kernel of ours to be compiled
        return random_purifier(network, guide, setting.config, device=run.device, execution="loop")


def compared(run: Run, variant: Any, comparison: Comparison, images: Images) -> Finding:
    """Its distance to float64, when it has also run at the batch and the steps that are timed."""
    finding = comparison.finding(variant)
    variant(images)  # allocates, compiles, captures; what does not fit shows here
    if run.device.type == "cuda" and isinstance(variant, CompiledPurifier):
        variant.confirm_graphs(run, images)
    return finding
