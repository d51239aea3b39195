"""The full counts of the reliability table: every test here is marked `soak`, and writes down the number that it reached."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import pytest

from bench.report.reliability import AREAS, RESULT

FOLDER = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)  # before pytest leaves out what `-m` does not name
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if FOLDER in item.path.parents:
            item.add_marker(pytest.mark.soak)


@pytest.fixture
def reached(request: pytest.FixtureRequest) -> Callable[..., None]:
    """`reached(area, count, asked=, of=, case=, **facts)`, last in a test: the number goes to bench/results/reliability.jsonl.

    `area` is a key of `bench.report.reliability.AREAS`; `of` says what was counted ("kills"), `case` which of several tests of
    the area this is ("folder", "tar"). A count below `asked` fails the test, and so leaves no line.
    """

    def write(area: str, count: int, *, asked: int, of: str, case: str = "", **facts: object) -> None:
        from bench.core.run import RESULTS, commit
        from purify_engine.benchmark.machine import machine_name
        from purify_engine.files import append_json_line

        assert area in AREAS, f"area must be one of {', '.join(AREAS)}, got {area!r}"
        assert count >= asked, f"{area}: {count} {of}, and {asked} were asked for"
        about = {"machine": machine_name("cpu"), "date": datetime.now(timezone.utc).date().isoformat(), "commit": commit()}
        figure = {"area": area, "case": case, "count": count, "asked": asked, "of": of, **facts}
        append_json_line(RESULTS / RESULT, {**figure, "test": request.node.nodeid, **about})

    return write
