"""Whether networks can do what a configuration asks of them: refused when a purifier is made, and not in its first call."""

from __future__ import annotations

from purify_engine.config import PurifierConfig, require
from purify_engine.engine.bridges import make_bridge
from purify_engine.models.denoiser import NetworkFacts
from purify_engine.models.own import GuideNetwork


def require_suitable(config: PurifierConfig, network: NetworkFacts, guide: GuideNetwork | None) -> None:
    """ValueError, in one line, where tiles do not fit, guidance has no network or would never pull, a variance is to be learned
    and is not, or time labels would be shifted twice."""
    make_bridge(config, network)
    needs_network = config.guidance.kind == "adversarial" and config.guidance.scale > 0
    require(guide is not None or not needs_network, "guide", "a Classifier for adversarial guidance", guide)
    pulls = config.guidance.form == "score" or config.sampler != "ddim" or config.eta > 0
    require(pulls, "guidance.form", "'score' where ddim's eta is 0: the mean form scales with the variance", config.guidance.form)
    has_variance = network.learned_variance or config.sampler != "ddpm_learned"
    require(has_variance, "sampler", "another where UNetConfig.learned_variance is False, as ddpm", config.sampler)
    once = config.time_labels == "index" or network.time_offset == 0
    require(once, "time_labels", f"index for a network whose time_offset is {network.time_offset:g}, not 0", config.time_labels)
