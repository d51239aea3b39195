"""Every output of every kernel is poisoned beforehand and guarded."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("triton")


@pytest.fixture(autouse=True)
def poison(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An element that a kernel leaves unwritten is NaN, or 173; one beyond its outputs is an error."""
    from purify_engine.kernels import _outputs
    from tests.kernels.triton_runner import Poison

    poison = Poison()
    monkeypatch.setattr(_outputs, "empty", poison)
    yield
    poison.assert_untouched()
