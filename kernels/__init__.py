"""The kernels in Triton: one file an op, `<stem>.py`, whose host function takes what its launcher in `ops` hands over.

Imports torch and Triton and nothing of ours. Nothing is autotuned: `_tiles.py` says which block sizes run, so that a kernel is
the same in the interpreter, compiled ahead of time, inside a captured graph, and twice in a row.
"""

if __name__ != "purify_engine.kernels":
    raise ImportError(f"import these kernels as purify_engine.kernels, not as {__name__}: that name belongs to another package")
