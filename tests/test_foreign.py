"""Importing what needs a library of others, where that library is missing."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import pytest

from purify_engine.foreign import imported

PYPROJECT = Path(__file__).parent.parent / "pyproject.toml"
NEEDS = {  # a module of ours -> the library that it imports, and the extra of ours that brings it
    "purify_engine.integrations.art": ("art", "art"),
    "purify_engine.integrations.diffusers": ("diffusers", "diffusers"),
}


@pytest.mark.parametrize("module", NEEDS)
def test_a_missing_library_is_told_in_one_line_with_the_command_that_installs_it(module, monkeypatch):
    library, extra = NEEDS[module]
    assert re.search(rf"^{extra} = \[", PYPROJECT.read_text(encoding="utf-8"), re.MULTILINE)
    monkeypatch.delitem(sys.modules, module, raising=False)
    for name in [name for name in sys.modules if name.split(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Hidden(library), *sys.meta_path])
    with pytest.raises(ModuleNotFoundError) as error:
        importlib.import_module(module)
    assert f"pip install 'purify-engine[{extra}]'" in str(error.value)
    assert "\n" not in str(error.value)
    assert error.value.name == library


def test_what_a_library_misses_itself_is_told_in_its_own_words(tmp_path, monkeypatch):
    (tmp_path / "half_installed.py").write_text("import a_library_that_is_nowhere\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="^No module named 'a_library_that_is_nowhere'$"):
        imported("half_installed", "Half", "half")


class Hidden:
    """A finder that makes a library look as if it were not installed."""

    def __init__(self, library: str) -> None:
        self.library = library

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == self.library:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
