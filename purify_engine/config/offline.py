"""How a data set is purified offline."""

from __future__ import annotations

from dataclasses import dataclass

from purify_engine.config.checks import require, require_count


@dataclass(frozen=True, kw_only=True)
class OfflineConfig:
    """How a data set is purified. What decides the bytes of the output is pinned by the run that began it."""

    batch_size: int | None = None
    """Images a batch, pinned for the whole run; None measures which is fastest on this device. Fewer where images are so large
    that 512 MiB hold no more."""
    part_size: int = 256
    """Images a part: what is written and committed as one, and done again after a crash."""
    decoders: int | None = None
    """Threads that decode and encode images; None is one for each core, 16 at most."""
    retry_failed: bool = False
    """Do the parts again that hold failed images; what was purified stays."""
    max_failed: float = 1.0
    """The share of images that may fail: where more do, or all, the run counts as failed (exit code 4)."""

    def __post_init__(self) -> None:
        if self.batch_size is not None:
            require_count("batch_size", self.batch_size)
        require_count("part_size", self.part_size)
        if self.decoders is not None:
            require_count("decoders", self.decoders)
        require(0 <= self.max_failed <= 1, "max_failed", "in [0, 1]", self.max_failed)
