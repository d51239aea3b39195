"""The writers of the other parts through tests/crash_safety.py, and that none goes its own way."""

import ast
from pathlib import Path

import pytest
import torch

import purify_engine
from purify_engine.config import PurifierConfig
from purify_engine.evaluation.report import write_report
from purify_engine.folders import write_config
from purify_engine.models import save_safetensors
from tests.crash_safety import (
    assert_durable_in_the_end,
    assert_failure_leaves_what_was_there,
    assert_umask_decides_who_may_read,
    to,
)

WRITERS = {
    "weights": to("a.safetensors", lambda path: save_safetensors(torch.nn.Linear(2, 2), path)),
    "config": to("config.json", lambda path: write_config(path.parent, purifier=PurifierConfig(t_star=1))),
    "report": to("a.html", lambda path: write_report(path, title="", rows=())),
}


every_writer = pytest.mark.parametrize("name", WRITERS)


@every_writer
def test_it_appears_by_a_rename_and_the_disk_has_it_in_the_end(name, tmp_path, disk_calls):
    assert_durable_in_the_end(WRITERS[name], tmp_path, disk_calls)


@every_writer
@pytest.mark.parametrize("old", [None, "old"], ids=["no file before", "a file before"])
def test_a_failure_leaves_what_was_there(name, old, tmp_path, monkeypatch):
    assert_failure_leaves_what_was_there(WRITERS[name], tmp_path, old, monkeypatch)


@every_writer
def test_it_may_be_read_by_whom_the_umask_lets(name, tmp_path):
    assert_umask_decides_who_may_read(WRITERS[name], tmp_path)


def test_files_are_written_renamed_and_awaited_in_one_place_only():
    """A `replace` of one argument is that of a path; that of a string takes two, that of a dataclass keywords."""
    package = Path(purify_engine.__file__).parent
    calls = [
        (path.relative_to(package).as_posix(), node.lineno)
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and writes(node)
    ]
    assert {file for file, _ in calls} == {"files.py"}, calls


def writes(call):
    name, positional = call.func.attr, len(call.args)
    return name in ("fsync", "rename", "write_text", "write_bytes") or (
        name == "replace" and positional == 1 and not call.keywords
    )
