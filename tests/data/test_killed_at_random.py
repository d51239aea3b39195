"""kill -9 at a few random moments; `tests/soak/test_kills.py` has the full count."""

import random

import pytest

from tests.soak.test_kills import DEEP, world

pytestmark = pytest.mark.system


def test_killed_at_random_and_resumed_there_is_no_trace_of_it(tmp_path):
    random.seed(1)
    deep = []
    with world(tmp_path) as runs:
        while sum(deep) < DEEP:
            deep.append(runs.chain(tmp_path / "clean"))
