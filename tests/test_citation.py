"""How to cite, and which version this is: said in four places, the same in each."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

import purify_engine

ROOT = Path(__file__).parent.parent
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
ENTITY, PERSON = {"name"}, {"family-names", "given-names"}


def test_the_citation_file_has_what_its_format_requires():
    """Citation File Format 1.2.0: what its schema requires of a file and of a reference, and text where it wants text."""
    assert CITATION["cff-version"] == "1.2.0" and CITATION["type"] == "software"
    for work in (CITATION, *CITATION["references"]):
        assert isinstance(work["title"], str) and work["authors"]
        assert all(set(author) in (ENTITY, PERSON) for author in work["authors"])
    assert all(isinstance(CITATION[key], str) for key in ("message", "version", "license", "abstract", "repository-code"))
    assert all(reference["type"] and reference["year"] > 2020 for reference in CITATION["references"])


def test_the_papers_whose_method_it_runs_are_cited():
    cited = {identifier["value"] for reference in CITATION["references"] for identifier in reference["identifiers"]}
    assert {"arXiv:2403.16067", "arXiv:2205.07460"} <= cited
    written = (ROOT / "README.md").read_text() + (ROOT / "purify_engine" / "config" / "presets.py").read_text()
    assert all(value.removeprefix("arXiv:") in written for value in cited)


def test_every_place_says_the_same_version():
    """`purify-engine --version` and what is installed take it from the package, and have tests of their own."""
    assert CITATION["version"] == purify_engine.__version__
    newest = re.search(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1]
    version = re.escape(purify_engine.__version__)
    assert re.fullmatch(rf"Unreleased \({version}\)|{version} · \d{{4}}-\d\d-\d\d", newest)
