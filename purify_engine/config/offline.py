"""How a data set is purified offline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from purify_engine.config.checks import one_of, require, require_count

Engine: TypeAlias = Literal["local", "ray"]


@dataclass(frozen=True, kw_only=True)
class OfflineConfig:
    """How a data set is purified. What decides the bytes of the output is pinned by the run that began it."""

    batch_size: int | None = None
    """Images a batch, pinned for the whole run; None measures which is fastest on this device. Fewer where images are so large
    that 512 MiB hold no more."""
    part_size: int = 256
    """Images a part: what is written and committed as one, and done again after a crash."""
    decoders: int | None = None
    """Threads that decode images, and as many that encode them; None is one for each core, 16 at most."""
    retry_failed: bool = False
    """Do the parts again that hold failed images, or whose files are gone or of another size; what was purified stays."""
    max_failed: float = 1.0
    """The share of images that may fail: where more do, or all, the run counts as failed (exit code 4)."""

    workers: int = 1
    """Processes that purify, each with a purifier of its own; with the engine ray its actors, one a GPU where there are GPUs."""
    threads: int | None = None
    """Threads of each process's computations, pinned for the whole run; None measures how many pay on this CPU, or, with several
    workers, shares PyTorch's number among them."""
    stall_seconds: float = 600.0
    """Seconds after which a run in which nothing moves ends, says where it stood (exit code 1), and may be gone on with. A batch
    has ten times as long as the slowest before."""
    engine: Engine = "local"
    """Where the processes are: on this machine, or wherever Ray puts them (pip install "purify-engine[ray]")."""
    ray_address: str | None = None
    """Of a Ray cluster; "auto" is the one that this machine is part of. None starts Ray on this machine."""

    shard_index: int | Literal["auto"] | None = None
    """Which share of the parts this run does, counted from 0; "auto" takes it and num_shards from the environment of torchrun or
    Slurm (srun, or a job array). Without it all is done."""
    num_shards: int | None = None
    """How many shares there are; each is a run of its own, into the same output."""

    def __post_init__(self) -> None:
        if self.batch_size is not None:
            require_count("batch_size", self.batch_size)
        require_count("part_size", self.part_size)
        if self.decoders is not None:
            require_count("decoders", self.decoders)
        require_count("workers", self.workers)
        if self.threads is not None:
            require_count("threads", self.threads)
        require(self.stall_seconds > 0, "stall_seconds", "a number of seconds, more than 0", self.stall_seconds)
        one_of("engine", self.engine, Engine)
        is_for_ray = self.engine == "ray" or self.ray_address is None
        require(is_for_ray, "ray_address", "left out where engine is not ray", self.ray_address)
        require(0 <= self.max_failed <= 1, "max_failed", "in [0, 1]", self.max_failed)
