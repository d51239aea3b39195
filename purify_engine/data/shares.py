"""Which parts of a source this process works on, where several machines share one output without talking to one another.

Share i of n takes the parts i, i + n, ... of all parts of the source, so that what a share is does not depend on what is done
already. Another number of shares may go on with an output; where two work on the same part, they write the same bytes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from purify_engine.config.checks import require, require_count
from purify_engine.data.items import Part


@dataclass(frozen=True)
class Share:
    """One of `count` shares of the parts of a source."""

    index: int = 0
    count: int = 1
    origin: str = "as asked for"
    """Where the two numbers came from, in words."""

    def __post_init__(self) -> None:
        require_count("num_shards", self.count)
        require(0 <= self.index < self.count, "shard_index", f"from 0 to num_shards - 1 = {self.count - 1}", self.index)

    @property
    def is_whole(self) -> bool:
        return self.count == 1

    def of(self, parts: Sequence[Part]) -> Sequence[Part]:
        """Its own of all `parts` of the source."""
        return [part for part in parts if self.holds(part)]

    def holds(self, part: Part) -> bool:
        return part.index % self.count == self.index

    def record(self, name: str) -> str:
        """The name of its own record: "manifest.jsonl", of one of several shares "manifest.3-of-16.jsonl"."""
        if self.is_whole:
            return name
        stem, suffix = name.rsplit(".", 1)
        return f"{stem}.{self.index}-of-{self.count}.{suffix}"

    def described(self) -> str:
        """In a line, for people: a share must not be taken for the whole."""
        parts = f"parts {self.index}, {self.index + self.count}, ... of the source"
        return f"share {self.index} of {self.count} ({self.origin}): {parts}"


WHOLE = Share()
RECORD = re.compile(r"(run|manifest|events)\.\d+-of-\d+\.jsonl?")  # the name of a share's own record


def share_of(index: int | Literal["auto"] | None, count: int | None, environment: Mapping[str, str] = os.environ) -> Share:
    """The share that --shard-index and --num-shards ask for; everything where neither is given.

    index "auto" reads both from the environment: torchrun's rank, or Slurm's task of a step (srun) or of a job array. An array of
    such jobs is divided by both. ValueError where nothing is found there, or an array's numbers have gaps.
    """
    if index == "auto":
        require(count is None, "num_shards", "left out where shard_index is auto", count)
        return _from_environment(environment)
    if index is None and count is None:
        return WHOLE
    if index is None or count is None:
        given, missing = ("num_shards", "shard_index") if index is None else ("shard_index", "num_shards")
        raise ValueError(f"{missing} must be given where {given} is: share shard_index of num_shards, counted from 0")
    return Share(index, count)


def _from_environment(environment: Mapping[str, str]) -> Share:
    """An array of jobs, each of several processes, is counted job by job."""
    index, count, found = 0, 1, list[str]()
    for read in (_slurm_array, _torchrun if "RANK" in environment else _slurm_step):
        share = read(environment)
        if share is not None:
            index, count = index * share.count + share.index, count * share.count
            found.insert(0, share.origin)
    if not found:
        looked = "RANK (torchrun), SLURM_PROCID and SLURM_STEP_NUM_TASKS (srun), SLURM_ARRAY_TASK_ID (sbatch --array)"
        raise ValueError(f"shard_index auto needs one of {looked} in the environment; else give shard_index and num_shards")
    return Share(index, count, "from " + " within ".join(found))


def _torchrun(environment: Mapping[str, str]) -> Share:
    return Share(_number(environment, "RANK"), _number(environment, "WORLD_SIZE"), "torchrun's rank")


def _slurm_step(environment: Mapping[str, str]) -> Share | None:
    """Of srun alone: a batch script has SLURM_PROCID and SLURM_NTASKS as well, though one process runs it."""
    if "SLURM_STEP_NUM_TASKS" not in environment or "SLURM_PROCID" not in environment:
        return None
    return Share(_number(environment, "SLURM_PROCID"), _number(environment, "SLURM_STEP_NUM_TASKS"), "srun's task")


def _slurm_array(environment: Mapping[str, str]) -> Share | None:
    """Of the tasks of a job array: 0-15, 1-16, 0-30:2."""
    if "SLURM_ARRAY_TASK_ID" not in environment:
        return None
    task, first, last, count = (_number(environment, f"SLURM_ARRAY_TASK_{name}") for name in ("ID", "MIN", "MAX", "COUNT"))
    step = max(1, (last - first) // max(1, count - 1))
    is_even = last == first + step * (count - 1) and (task - first) % step == 0
    require(is_even, "the job array", "evenly spaced, such as 0-15", f"{count} tasks from {first} to {last}, this one {task}")
    return Share((task - first) // step, count, "the task of Slurm's job array")


def _number(environment: Mapping[str, str], name: str) -> int:
    value = environment.get(name, "")
    require(value.isascii() and value.isdigit(), name, "a number, in the environment", value or "nothing")
    return int(value)
