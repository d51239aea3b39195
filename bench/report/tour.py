"""docs/tour.ipynb, run from top to bottom by a Jupyter kernel of this Python, with what its cells print and draw.

    python -m bench tour           needs ipykernel and nbclient; `make notebook` has an environment with them

Nothing of the machine or the time goes into the file: only what the cells put out. A cell that fails leaves it as it was.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from bench.core.run import ROOT

NOTEBOOK = ROOT / "docs" / "tour.ipynb"
SECONDS = 300  # a cell's; all together take a few


def executed(notebook: dict[str, Any]) -> dict[str, Any]:
    """The notebook with the outputs of its cells, run in one fresh kernel. Raises nbclient's error of the cell that fails."""
    import nbformat
    from nbclient import NotebookClient

    held = nbformat.from_dict(notebook)
    NotebookClient(held, timeout=SECONDS, kernel_name="python3", record_timing=False, resources={}).execute()
    return bare(held)


def bare(notebook: dict[str, Any]) -> dict[str, Any]:
    """Its cells, without what their machine, their time and the last edit left beside them."""
    kept = ("cell_type", "id", "source", "execution_count", "outputs")
    cells = [{name: cell[name] for name in kept if name in cell} | {"metadata": {}} for cell in notebook["cells"]]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


def main(words: list[str]) -> int:
    argparse.ArgumentParser("python -m bench tour", description=(__doc__ or "").splitlines()[0]).parse_args(words)
    made = executed(json.loads(NOTEBOOK.read_text(encoding="utf-8")))
    NOTEBOOK.write_text(json.dumps(made, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")
    print(f"written: {NOTEBOOK.relative_to(ROOT)}")
    return 0
