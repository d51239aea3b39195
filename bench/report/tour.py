"""docs/tour.ipynb, run from top to bottom by a Jupyter kernel of this Python, with what its cells print and draw.

    python -m bench tour           needs ipykernel and nbclient; `make notebook` has an environment with them

Nothing of the machine or the time goes into the file: only what the cells put out. A cell that fails leaves it as it was.
"""

from __future__ import annotations

import argparse
from typing import Any

from bench.core.run import ROOT

NOTEBOOK = ROOT / "docs" / "tour.ipynb"
SECONDS = 300  # a cell's at most


def bare(notebook: dict[str, Any]) -> dict[str, Any]:
    """Its cells, without what their machine, their time and the last edit left beside them."""
    kept = ("cell_type", "id", "source", "execution_count")
    cells = [{name: cell[name] for name in kept if name in cell} | {"metadata": {}} for cell in notebook["cells"]]
    for cell, whole in zip(cells, notebook["cells"], strict=True):
        if "outputs" in whole:
            cell["outputs"] = outputs(whole["outputs"])
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


def outputs(given: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What a cell put out: its printed lines in one piece, however they arrived, and of a picture the lossless form alone."""
    kept = list[dict[str, Any]]()
    for output in given:
        if output["output_type"] == "stream" and kept and kept[-1].get("name") == output["name"]:
            kept[-1]["text"] += output["text"]
            continue
        kept.append(dict(output))
        if "image/png" in output.get("data", {}):
            kept[-1]["data"] = {kind: value for kind, value in output["data"].items() if kind != "image/jpeg"}
    return kept


def main(words: list[str]) -> int:
    argparse.ArgumentParser("python -m bench tour", description=(__doc__ or "").splitlines()[0]).parse_args(words)
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=SECONDS, kernel_name="python3", record_timing=False).execute()
    nbformat.write(nbformat.from_dict(bare(notebook)), NOTEBOOK)
    print(f"written: {NOTEBOOK.relative_to(ROOT)}")
    return 0
