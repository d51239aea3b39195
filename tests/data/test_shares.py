"""Which share of a run a process does, by its options or by its environment."""

import pytest

from purify_engine.data.items import Part
from purify_engine.data.shares import Share, share_of

ARRAY = {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_MAX": "10", "SLURM_ARRAY_TASK_COUNT": "4"}
ALONE = {**ARRAY, "SLURM_ARRAY_TASK_MIN": "7", "SLURM_ARRAY_TASK_MAX": "7", "SLURM_ARRAY_TASK_COUNT": "1"}
BATCH_SCRIPT = {"SLURM_JOB_ID": "1", "SLURM_PROCID": "0", "SLURM_NTASKS": "8"}  # one process, whatever was allocated
STEP = {**BATCH_SCRIPT, "SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8"}
TORCHRUN = {"RANK": "1", "WORLD_SIZE": "3", "LOCAL_RANK": "1"}
ENVIRONMENTS = {
    "torchrun": (TORCHRUN, (1, 3)),
    "torchrun in srun": ({**STEP, **TORCHRUN}, (1, 3)),
    "srun": (STEP, (5, 8)),
    "an array with a step, from 1": (ARRAY, (2, 4)),
    "an array of one": (ALONE, (0, 1)),
    "an array's batch script": ({**ARRAY, **BATCH_SCRIPT}, (2, 4)),
    "srun in an array": ({**ARRAY, **STEP}, (2 * 8 + 5, 4 * 8)),
    "torchrun in an array": ({**ARRAY, **TORCHRUN}, (2 * 3 + 1, 4 * 3)),
}


@pytest.mark.parametrize("count", [1, 2, 3, 7, 12, 20])
def test_shares_are_disjoint_and_hold_every_part(count):
    parts = [Part(index, 4 * index, 4) for index in range(12)]
    held = [part for index in range(count) for part in Share(index, count).of(parts)]
    assert sorted(held, key=lambda part: part.index) == parts


@pytest.mark.parametrize("environment, expected", ENVIRONMENTS.values(), ids=ENVIRONMENTS)
def test_auto_reads_the_environment_and_says_where(environment, expected):
    share = share_of("auto", None, environment)
    assert (share.index, share.count) == expected
    origin = "torchrun" if "RANK" in environment else "srun" if "SLURM_STEP_NUM_TASKS" in environment else "Slurm's job array"
    assert f"share {share.index} of {share.count} (from " in share.described() and origin in share.described()


@pytest.mark.parametrize("environment", [environment for environment, _ in ENVIRONMENTS.values()], ids=ENVIRONMENTS)
def test_nothing_is_divided_unasked(environment):
    assert share_of(None, None, environment) == Share(0, 1) and share_of(0, 2, environment) == Share(0, 2)


def test_records_of_shares_have_names_of_their_own():
    assert Share().record("manifest.jsonl") == "manifest.jsonl"
    assert Share(3, 16).record("manifest.jsonl") == "manifest.3-of-16.jsonl"
    assert Share(3, 16).record("run.json") == "run.3-of-16.json"


@pytest.mark.parametrize(
    "asked, environment, said",
    [
        ((0, None), {}, "num_shards must be given where shard_index is"),
        ((None, 4), {}, "shard_index must be given where num_shards is"),
        ((4, 4), {}, "shard_index must be from 0 to num_shards - 1 = 3, got 4"),
        ((-1, 4), {}, "shard_index must be from 0 to num_shards - 1 = 3, got -1"),
        ((0, 0), {}, "num_shards must be a whole number, at least 1, got 0"),
        (("auto", 4), TORCHRUN, "num_shards must be left out where shard_index is auto, got 4"),
        (("auto", None), {}, "shard_index auto needs one of"),
        (("auto", None), BATCH_SCRIPT, "shard_index auto needs one of"),
        (("auto", None), {"RANK": "0"}, "WORLD_SIZE must be a number, in the environment, got 'nothing'"),
        (("auto", None), {**TORCHRUN, "RANK": "²"}, "RANK must be a number"),
        (("auto", None), {**ARRAY, "SLURM_ARRAY_TASK_MAX": "12"}, "the job array must be evenly spaced"),
        (("auto", None), {**ARRAY, "SLURM_ARRAY_TASK_ID": "8"}, "the job array must be evenly spaced"),
    ],
)
def test_what_makes_no_share_is_refused_in_a_line(asked, environment, said):
    with pytest.raises(ValueError, match=said.replace("(", r"\(")) as refused:
        share_of(*asked, environment)
    assert "\n" not in str(refused.value)
