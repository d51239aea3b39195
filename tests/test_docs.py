"""The documents against the code: every equation stands once and is cited, and every link leads somewhere."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
EQUATION = re.compile(r"^\*\*E(\d+) · ", re.MULTILINE)


def cited() -> dict[int, str]:
    """Equation number -> a file that cites it, among the code."""
    found = {}
    for folder in ("purify_engine", "csrc"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".cpp", ".h"):
                text = path.read_text()
                for first, last in re.findall(r"\bE(\d+)(?: to E(\d+))?", text):
                    found |= dict.fromkeys(range(int(first), int(last or first) + 1), str(path))
    return found


def test_every_equation_stands_once_in_order():
    numbers = [int(number) for number in EQUATION.findall((ROOT / "docs" / "math.md").read_text())]
    assert numbers == list(range(1, len(numbers) + 1))


def test_code_cites_every_equation_and_no_other():
    numbers = {int(number) for number in EQUATION.findall((ROOT / "docs" / "math.md").read_text())}
    assert set(cited()) == numbers


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_inside_the_project_leads_somewhere(path):
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), f"{path.name} links to {target}"
