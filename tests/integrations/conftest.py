"""What the tests of libraries of others tell at the end: each library's version, and how many lines its example takes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.machinery import SOURCE_SUFFIXES, FileFinder, SourceFileLoader
from pathlib import Path
from typing import Any

import pytest

ROOT = str(Path(__file__).parent.parent.parent)


class WithoutKernels(FileFinder):
    """Finds what stands in a folder, but for its `kernels`: transformers would take it for the package of that name."""

    def find_spec(self, fullname: str, target: Any = None) -> Any:
        return None if fullname == "kernels" else super().find_spec(fullname, target)


sys.path_importer_cache[ROOT] = WithoutKernels(ROOT, (SourceFileLoader, SOURCE_SUFFIXES))

TOLD = pytest.StashKey[list[str]]()


@pytest.fixture
def tell(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Add a line to what is told when all tests are done."""
    return request.config.stash.setdefault(TOLD, []).append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for line in config.stash.get(TOLD, []):
        terminalreporter.write_line(line)
