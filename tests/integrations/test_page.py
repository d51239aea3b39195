"""Every example of docs/integrations.md, run as it stands there, each in a process and a folder of its own.

AUTOATTACK and ROBUSTBENCH name folders with the sources of those two, which are on no package index.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.test_packaging import needed, normal

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs" / "integrations.md"
BLOCK = re.compile(r"^## (.+?)$|^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MOST_LINES = 10
FROM_A_PATH = {"autoattack": "AUTOATTACK"}  # an imported name -> the variable that says where it is

# What must hold once an example has run: that it did what its section says, not only that nothing was raised.
WITHIN = "assert 0 < (torch.as_tensor(adversarial) - images).abs().max() <= 0.15 + 1e-6; assert 0 <= accuracy <= 1"
STILL_FROZEN = (
    "assert not any(p.requires_grad or p.grad is not None for p in purifier.parameters()) and not purifier.training; "
    "assert not torch.equal(next(classifier.parameters()), next(load_classifier('digits').parameters()))"
)
CHECKS = {
    "A defended classifier": "assert logits.shape == (8, 10) and attacked_images.grad.abs().sum() > 0",
    "torchattacks": f"{WITHIN}; assert not defended.training and not classifier.training",
    "foolbox": WITHIN,
    # AutoAttack hands back unchanged what it did not break, which may be all.
    "AutoAttack": (
        "assert (adversarial - images).abs().max() <= 0.15 + 1e-6; assert adversary.attacks_to_run == ['apgd-ce', 'apgd-dlr']"
    ),
    "Adversarial Robustness Toolbox": WITHIN,
    "RobustBench": "assert path.is_file() and path.parts[-3:] == ('cifar10', 'Linf', 'Author2026Title.json')",
    "diffusers": "assert samples.shape == (2, 8, 8, 1) and 0 < ((x_t + 1) / 2 - images).abs().mean() < 0.2",
    "Datasets and DataLoaders": "assert len(in_workers) == len(in_this_process) == 2 and one.shape == images[0].shape",
    "Hugging Face Trainer": (
        f"{STILL_FROZEN}; trainer.save_model('saved'); from safetensors.torch import load_file; "
        "defended.load_state_dict(load_file('saved/model.safetensors')); "
        "assert 'purifier.denoiser' in ' '.join(defended.state_dict())"
    ),
    "accelerate": STILL_FROZEN,
    "Lightning": STILL_FROZEN,
}


class Example(NamedTuple):
    """A block of Python of the page, and the section that it stands in."""

    section: str
    code: str

    @property
    def lines(self) -> int:
        return sum(bool(line.strip()) and not line.lstrip().startswith("#") for line in self.code.splitlines())

    @property
    def imported(self) -> set[str]:
        """The top-level names of the libraries of others that it imports."""
        nodes = list(ast.walk(ast.parse(self.code)))
        names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
        return {name.split(".")[0] for name in names} - {"torch", "purify_engine", *sys.stdlib_module_names}


def examples() -> list[Example]:
    found, section = [], ""
    for heading, code in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        section = heading or section
        if code:
            found.append(Example(section, code))
    return found


START, *EXAMPLES = examples()


def run(code: str, folder: Path, *paths: str) -> str:
    """What `code` prints, as a user would run it: away from the sources of this project."""
    (folder / "example.py").write_text(code, encoding="utf-8")
    settings = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    settings |= {"HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run([sys.executable, "example.py"], cwd=folder, env=settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_page_has_an_example_of_ten_lines_at_most_for_every_library():
    assert {example.section for example in EXAMPLES} >= set(CHECKS)
    assert not {example.section: example.lines for example in EXAMPLES if example.lines > MOST_LINES}


@pytest.mark.integration
def test_every_library_and_what_it_needs_is_pinned_exactly():
    lines = [line for name in ("", "-integrations") for line in (ROOT / f"constraints{name}.txt").read_text().splitlines()]
    pinned = {normal(line.split("==")[0]) for line in lines if "==" in line}
    assert needed(["purify-engine[digits,integrations]"]) - {"purify-engine"} <= pinned


@pytest.mark.integration
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.section)
def test_the_example_runs(example, tmp_path, tell):
    paths, versions = [], []
    for name in sorted(example.imported):
        if name in FROM_A_PATH:
            variable = FROM_A_PATH[name]
            if not os.environ.get(variable):
                tell(f"{example.section}: NOT RUN, {variable}=<folder of its sources> was not given")
                pytest.skip(f"{name} is on no package index: {variable}=<folder of its sources>")
            paths.append(os.environ[variable])
            versions.append(f"{name} from {variable}")
        else:
            distribution = packages_distributions()[name][0]
            versions.append(f"{distribution} {version(distribution)}")
    run("\n".join([START.code, example.code, CHECKS.get(example.section, "")]), tmp_path, *paths)
    tell(f"{example.section}: {', '.join(versions) or 'nothing of others'}; {example.lines} lines, ran")
